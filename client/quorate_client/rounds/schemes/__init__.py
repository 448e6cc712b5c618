"""What of the sums at a site depends on how the study is protected: under secure aggregation, and without."""
