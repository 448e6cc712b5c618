"""How data sets are read and checked against a schema."""
