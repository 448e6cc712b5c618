"""The way to the server: joining, the channel, transfers."""
