"""The driver: stages, loop, checkpoints, evaluation."""
