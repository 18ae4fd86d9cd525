"""A search under Ray Tune: trials of one training, and what came of them."""
