"""A round at a site: from an instruction to what leaves."""
