"""Synthetic data sets: made from a registered one, measured before they are used, and known again."""
