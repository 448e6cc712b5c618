"""Four life insurers look for fraud, on synthetic claims that each of them makes: ``make demo-fraud``."""
