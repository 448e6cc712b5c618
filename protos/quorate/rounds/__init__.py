"""The round as values: what a server asks, what a site answers, the bulk data between them."""
