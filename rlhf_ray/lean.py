"""Transformers without scikit-learn, which it imports for one kind of assisted generation: a quarter of the start of every process."""

import transformers.utils

transformers.utils.is_sklearn_available = lambda: False
