"""A round at the server: ask, collect, add."""
