"""Ray actors: groups of workers, their placement, the Ray session of a command, and job submission."""
