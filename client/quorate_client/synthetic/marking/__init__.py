"""How a table that was made here is marked, and known again."""
