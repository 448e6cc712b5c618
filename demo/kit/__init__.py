"""What the demos have in common beside a consortium."""
