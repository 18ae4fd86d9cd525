"""Rollout generation: engines and the worker around them."""
