"""The reward of the benchmarks, with TRL's signature: both sides call this very function on decoded text."""


def reward(prompts, completions, **columns):
    """Share of a completion's words with an even number; the benchmark's words are w0, w1, ..."""
    words = [text.split() for text in completions]
    return [sum(w[-1] in "02468" for w in row) / max(1, len(row)) for row in words]
