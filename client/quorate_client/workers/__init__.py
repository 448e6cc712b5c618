"""The processes in which tasks run, behind a fence."""
