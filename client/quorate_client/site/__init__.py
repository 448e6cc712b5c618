"""What a site is: its folder, keys, configuration, database."""
