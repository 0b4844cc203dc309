"""Step results: what a job has after each step, kept for the attempt that goes on from there."""
