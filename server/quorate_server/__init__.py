"""The coordinator: enrolment, rounds, aggregation. It never holds a key that opens a site's sealed data."""
