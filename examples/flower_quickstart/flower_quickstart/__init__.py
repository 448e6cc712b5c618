"""flower_quickstart: a Flower / NumPy app."""
