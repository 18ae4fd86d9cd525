"""RLHF for language models as a distributed training service on Ray.

``from rlhf_ray import train, evaluate, load_run`` is the Python API. It imports neither torch nor ray before it is
used.
"""

import importlib

# Python binds the name `train` to the package of that name when it is first imported. Import it here, so that the
# function replaces it.
importlib.import_module(f"{__name__}.train")

from .api import Run, evaluate, load_run, train  # noqa: E402

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "evaluate", "load_run", "train"]
