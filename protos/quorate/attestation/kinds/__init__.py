"""The verifiers, one module a kind, each with one function ``claims``. ``appraise`` alone calls them."""
