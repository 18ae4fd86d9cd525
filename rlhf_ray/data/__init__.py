"""Data: rows of files, tokens, Batches, and the order in which examples are drawn."""

from .. import lean as lean  # before anything of transformers
