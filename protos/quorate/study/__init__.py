"""What was agreed: the study, who stands behind it, which code it means."""
