"""Flower apps that look into every corner of the transport under them. Nothing here knows of Quorate."""
