"""Reports on finished and running jobs: tables and plots."""
