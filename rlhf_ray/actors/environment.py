"""Environment variables of Ray, read when it is first imported, and of workers; this module does not import Ray."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ..config import BadInput, ClusterConfig

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


def authenticate(config: ClusterConfig) -> None:
    """Turns on token authentication for a local session; the token is only in the environment of this process.

    Otherwise Ray would write a token to the user's home directory, readable by everyone. If the job joins a cluster,
    the cluster decides, and nothing is changed.
    """
    if config.address or "RAY_ADDRESS" in os.environ or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def set_client_token(file: str | None) -> None:
    """Turns on token authentication towards a cluster if there is a token: in ``file``, or where Ray looks for one.

    Ray's client sends its token only if the mode is set too. Raises BadInput if ``file`` holds no token.
    """
    if file is not None:
        if not Path(file).is_file() or not Path(file).read_text().strip():
            raise BadInput(f"--token-file: {file} holds no token; `ray get-auth-token --generate` prints one")
        os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray would prefer it to the file
        os.environ["RAY_AUTH_TOKEN_PATH"] = file
    default = Path.home() / ".ray" / "auth_token"
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ) or default.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def allocator_variable(role: str, configured: str) -> dict[str, str]:
    """The variable of PyTorch's CUDA allocator for a role, as far as it must differ from the ``configured`` one.

    Learners get expandable segments: their micro-batches have ragged sizes, which leave holes between fixed segments.
    Rollout workers get none, because vLLM's sleep mode refuses them.
    """
    settings = [setting for setting in configured.split(",") if setting.strip()]
    others = [setting for setting in settings if "expandable_segments" not in setting]
    if role == "learner" and others == settings:
        return {ALLOCATOR: ",".join([*settings, "expandable_segments:True"])}
    if role == "rollout" and others != settings:
        return {ALLOCATOR: ",".join(others)}
    return {}
