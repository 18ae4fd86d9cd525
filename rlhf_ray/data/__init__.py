"""Data: reading examples, making Batches, sampling, and the offline world."""

from .. import lean as lean  # before anything of transformers
