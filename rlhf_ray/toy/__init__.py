"""A synthetic dataset of reviews whose true score is known, so that everything runs without a download."""
