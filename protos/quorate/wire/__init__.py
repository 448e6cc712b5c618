"""Values to protos and back."""
