"""What operators and ops teams read: reports, figures, metrics."""
