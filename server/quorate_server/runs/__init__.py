"""Runs, their processes and their mail."""
