"""The report before use: each figure by hand, and generators that must be found out."""
