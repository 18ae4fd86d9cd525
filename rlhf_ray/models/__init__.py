"""Models: loading, heads, and token log-probabilities."""

from .. import lean as lean  # before anything of transformers
