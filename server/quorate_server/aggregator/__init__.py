"""The attested aggregator: the one process whose software is measured, and which alone opens what sites seal.

It runs the sums of a study as a worker of the server does, on a machine of its own, and shows evidence of itself. The
server's registry, doors and pages stay outside and see what is sealed. Nothing here loads code at run time.
"""
