"""Models: loading, heads, and token log-probabilities."""
