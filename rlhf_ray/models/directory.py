"""What a model's directory and its config.json say, read without torch.

`rlhf-ray plan` and the checks before a run use this module. Loading is in models/load.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import BadInput

UNLIMITED_CONTEXT = 1 << 30


def find_local_model(path: str) -> str | None:
    """The absolute directory of a model; None for a name that may be a Hugging Face id.

    Raises BadInput if it is neither.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file() and not (local / "adapter_config.json").is_file():
            raise BadInput(f"{path}: has no config.json; expected a model directory in Hugging Face format")
        return str(local.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise BadInput(f"{path}: no such model directory")
    return None


def fetch_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """The values of config.json of a directory or a Hugging Face id, which is downloaded; of an adapter those of its
    base.

    Values of `text_config` replace those of the same name. Raises OSError if there is no config.json or it cannot be
    downloaded, and ValueError if it is not JSON.
    """
    directory = Path(path).expanduser()
    adapter, file = directory / "adapter_config.json", directory / "config.json"
    if not file.is_file() and adapter.is_file():
        return fetch_config(json.loads(adapter.read_text())["base_model_name_or_path"])
    if not file.is_file():
        file = _download_config(path, revision)
    values = json.loads(file.read_text())
    return {**values, **values.get("text_config", {})}


def _download_config(path: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no model at {path}")
    return Path(hf_hub_download(path, "config.json", revision=revision))


def context_length(values: Mapping[str, Any]) -> int:
    """Most tokens that a model with these values of config.json takes; 2^30 if they do not say."""
    return int(values.get("max_position_embeddings") or values.get("n_positions") or UNLIMITED_CONTEXT)


def num_saved_parameters(directory: str) -> int | None:
    """Numbers in the safetensors files of a model directory, from their headers; None if it has no such file.

    A file begins with the size of its header, 8 bytes, little end first; the header is JSON (huggingface/safetensors).
    """
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        return None
    total = 0
    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return total


def has_experts(values: Mapping[str, Any]) -> bool:
    """Whether config.json's values are those of a mixture of experts."""
    return any(values.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
