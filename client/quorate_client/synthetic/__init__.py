"""Synthetic data sets of a site: made from a registered one, measured before they are used."""
