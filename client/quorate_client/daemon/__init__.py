"""The daemon: instructions in, stored replies out."""
