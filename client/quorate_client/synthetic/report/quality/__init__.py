"""What a synthetic set is good for: hygiene, fidelity, bias and utility, beside the real records."""
