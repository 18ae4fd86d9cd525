"""Reports on finished and running jobs: records that are computed first, then tables and plots of them."""
