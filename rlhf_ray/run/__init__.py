"""What a run is on disk: its directory, checkpoints, trajectories, events, metrics and usage."""
