"""What every program of ours needs of its process: private files, terminal, metrics, work of an event loop."""
