"""The secure sums of a run."""
