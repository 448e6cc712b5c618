"""The operator's command line, ``quorate``."""
