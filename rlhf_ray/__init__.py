"""RLHF for language models as a distributed training service on Ray.

``from rlhf_ray import train, evaluate, load_run`` is the Python API; its names are loaded when they are first used, so
that importing a part of the package stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run, evaluate, load_run, train

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "evaluate", "load_run", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'rlhf_ray' has no attribute '{name}'")
