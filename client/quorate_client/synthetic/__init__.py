"""Records that stand in for a site's own: made at the site, measured before they are used."""
