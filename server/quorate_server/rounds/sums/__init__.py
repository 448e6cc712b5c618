"""The sums of a study's run, whatever protects them."""
