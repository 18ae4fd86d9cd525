"""Data: reading examples, making Batches, sampling, and the offline world."""
