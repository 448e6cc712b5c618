"""Synthetic data sets: making and measuring them."""
