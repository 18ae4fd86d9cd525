"""Trials as a search with a KL budget of 5 nats would have them."""

from rlhf_ray.search.results import TrialResult


def five_trials():
    """A careful trial, a better one within the budget, a hacker, one stopped early, a worse one; and one that failed."""
    table = [
        ("careful", "finished", 0.5, 0.8, 1e-4),
        ("good", "finished", 0.9, 3.0, 3e-4),
        ("hacker", "finished", 2.5, 40.0, 9e-3),
        ("early", "stopped", 1.2, 1.0, 5e-4),
        ("worse", "finished", 0.8, 3.5, 6e-4),
    ]
    trials = []
    for name, state, reward, kl, lr in table:
        history = [{"step": 2, "quality": reward / 2, "kl": kl / 2, "length": 8.0, "score": reward / 2}]
        if state == "finished":
            score = reward if kl <= 5 else -8e3
            history.append({"step": 4, "quality": reward, "kl": kl, "length": 8.0, "score": score})
        trials.append(TrialResult(name=name, run=name, state=state, values={"learner.lr": lr}, history=history))
    failed = TrialResult(
        name="broken", run="broken", state="failed", values={"learner.lr": 1e-2}, error="ValueError: no"
    )
    return [*trials, failed]
