"""Adding updates. ``plain`` is the scheme of ``protection = "none"``: fixed-point integers that the server can read."""
