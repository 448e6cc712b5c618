"""Local training, with and without differential privacy."""
