"""Reward scoring: rules, models, user functions, and the worker around them."""
