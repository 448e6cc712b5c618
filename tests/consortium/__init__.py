"""A consortium of real processes, for the tests that need one. Every wait has an end."""
