"""What a job will need, before anything is started: memory, seconds, and a simulation of the step. Pure; neither torch nor ray."""
