"""The sums of a run at a site, whatever protects them."""
