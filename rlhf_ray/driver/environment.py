"""Environment that Ray reads when it is first imported: this module must run before that, and imports nothing of it."""

from __future__ import annotations

import os
import secrets

from ..config import ClusterConfig


def authenticate(config: ClusterConfig) -> None:
    """Token authentication for a local session of our own; the token lives in this process's environment only.

    Ray would else write one, readable by all, to the user's home. A cluster that is joined decides for itself.
    """
    if config.address or "RAY_ADDRESS" in os.environ or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
