"""What gives away that a column says who somebody is."""
