"""The contract of Quorate: everything that a server, a site and an operator agree on, byte for byte."""

__version__ = "0.1.0"
