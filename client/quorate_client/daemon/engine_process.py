"""The process that holds a site's engine where Flower's daemons run and not ours: one for each site's folder.

Flower starts a program for each message, or serves several sites in one. The one-time keys and shares of a secure sum
must outlive the message and must not be on disk, so they stay in the memory of this process: the daemon's engine with
the daemon's workers, behind a UNIX socket (``flower/engine_client.py``). It is started by the first message, and ends
when no message can come any more, or when the folder is gone. If it dies, the site sits the sum out, as after a
daemon's restart.

It takes the daemon's lock on the folder: neither two of these nor one beside a daemon. There is no journal: a run that
dies starts again. A message that comes twice opens no sum twice (``rounds/sums/votes.py``, the steps of a
``Participant``) and spends no budget twice (the ledger).
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from quorate.errors import WrongStateError
from quorate_client.flower.engine_client import HELD, address
from quorate_client.site.folder import SiteFolder

BACKLOG = 64


def main(root: Path) -> int:
    """Listen, then go on in the background. The exit status is there for whoever waits: who gets 0 may connect."""
    folder = SiteFolder(root.absolute())
    folder.create()
    os.umask(0o077)
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.held_by_this_daemon())
        except WrongStateError:
            return HELD
        listener = stack.enter_context(listen(folder))
        if os.fork():
            os._exit(0)  # lock and socket belong to the child alone
        os.setsid()
        _let_go_of_the_starter(folder)
        # Only now: a fork would not do any good to the threads of what is imported here.
        from quorate_client.daemon.engine_server import serve

        serve(folder, listener)
    return 0


def listen(folder: SiteFolder) -> socket.socket:
    """The socket, with mode 0600; one that a dead process left is removed. The lock must be held.

    Raises:
        IdentityError: other users may reach it.
    """
    listener = socket.socket(socket.AF_UNIX)
    with address(folder) as name:
        Path(name).unlink(missing_ok=True)
        listener.bind(name)
        Path(name).chmod(0o600)
    listener.listen(BACKLOG)
    return listener


def _let_go_of_the_starter(folder: SiteFolder) -> None:
    """Of its terminal, its pipes and its working folder. Events go to the site's log."""
    os.chdir(folder.root)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
