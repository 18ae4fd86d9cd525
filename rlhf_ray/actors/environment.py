"""Environment that Ray reads when it is first imported: this module must run before that, and imports nothing of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..config import BadInput, ClusterConfig


def authenticate(config: ClusterConfig) -> None:
    """Token authentication for a local session of our own; the token lives in this process's environment only.

    Ray would else write one, readable by all, to the user's home. A cluster that is joined decides for itself.
    """
    if config.address or "RAY_ADDRESS" in os.environ or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def carry_token(file: str | None) -> None:
    """Token authentication towards a cluster wherever there is a token to show: in ``file`` or in one of Ray's own places.

    Ray's client sends none, and gets 401, unless the mode is set too. Raises BadInput for a file without a token.
    """
    if file is not None:
        if not Path(file).is_file() or not Path(file).read_text().strip():
            raise BadInput(f"--token-file: {file} holds no token; `ray get-auth-token --generate` prints one")
        os.environ.pop("RAY_AUTH_TOKEN", None)  # which Ray would prefer
        os.environ["RAY_AUTH_TOKEN_PATH"] = file
    default = Path.home() / ".ray" / "auth_token"
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or default.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
