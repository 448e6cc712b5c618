"""Four hospitals detect cancer with every protection at once, and with each left out: ``make demo-collaborative``."""
