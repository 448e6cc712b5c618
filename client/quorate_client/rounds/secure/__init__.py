"""A secure sum at a site."""
