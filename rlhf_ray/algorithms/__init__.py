"""The mathematics: pure functions of tensors and plain numbers, without config, Ray or I/O."""
