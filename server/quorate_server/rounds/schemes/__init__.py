"""What of the sums of a study depends on how it is protected: under secure aggregation, and without."""
