"""Child processes around TRL's trainers, each run with one version of TRL first on PYTHONPATH."""
