"""How good something is: pure functions of texts, labels and scores; well-kept libraries where there are any."""
