"""Workarounds for other packages, each called where a process starts; nothing happens on import."""

from __future__ import annotations

WORKER_SETUP = "rlhf_ray._compat.hide_sklearn"  # Ray calls it at the start of every worker process


def hide_sklearn() -> None:
    """Tells transformers that scikit-learn is not installed; call it before anything imports a transformers model.

    Transformers imports scikit-learn with its generation code, for one kind of assisted generation that is not used
    here. That import is about a quarter of the start of every process.
    """
    import transformers.utils

    transformers.utils.is_sklearn_available = lambda: False
