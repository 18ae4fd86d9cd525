"""Job kinds: what each value of `job:` checks, needs and runs, and the pipeline that runs several in order."""
