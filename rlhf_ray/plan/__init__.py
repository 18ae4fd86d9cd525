"""Before a run: estimates of memory and time, placement on hardware that need not be there, and the checks of `rlhf-ray doctor`."""
