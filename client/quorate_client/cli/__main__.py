"""``python -m quorate_client.cli``: the command, where its script is not on the path."""

from quorate_client.cli import main

main()
