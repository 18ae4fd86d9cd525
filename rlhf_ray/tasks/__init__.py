"""Supervised tasks: how rows become a Batch, the objective, and the measure of held-out predictions."""
