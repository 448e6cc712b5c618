"""Who belongs to the consortium: authority, registry, studies."""
