"""Hyperparameter search with Ray Tune: objective, trials, schedulers and results."""
