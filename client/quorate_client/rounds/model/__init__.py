"""The model at a site: how it arrives there, file by file."""
