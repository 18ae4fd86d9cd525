"""Training: the RL loop, the supervised loop, and what both are made of."""
