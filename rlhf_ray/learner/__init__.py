"""Learning: objectives, ZeRO, and the worker around them."""
