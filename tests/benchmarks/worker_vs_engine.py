"""Generation through RolloutWorker as a Ray actor against the bare engine in a process of its own: the same prompts, seeds,
weights, lengths and precision, so the same tokens. The ratio is the share of the engine's speed that the worker keeps.

Benchmark 4, first half: 64 prompts of 16 tokens, 8 samples each of 64 of them at a time (512 sequences), forced lengths.
"""
