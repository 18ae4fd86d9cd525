"""Data: rows of files, tokens, Batches, and the order in which examples are drawn."""
