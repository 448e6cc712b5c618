"""What a site's data sets have spent of their privacy."""
