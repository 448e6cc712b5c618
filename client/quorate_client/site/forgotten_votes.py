"""What follows where a database is put back, or made anew: the votes that the site gave since are forgotten.

A site that does not know what it helped to open may help again, to what differs from it in one site. So from then on it
has no part in a run that began before: its study keys are gone, and it joins a key only with a part of its own that it
made since (``secagg/study_key.py``). What a server says of a run is not asked.
"""

from __future__ import annotations

import shutil
from typing import Final

from quorate_client.site.database import begin_memory
from quorate_client.site.folder import SiteFolder

FOLLOWS: Final = (
    "This site sits out all runs under secure aggregation that began before now (votes_forgotten): they go on without "
    "it, or the operator stops them and starts new ones."
)
"""For people."""


def leave_secure_runs(folder: SiteFolder) -> None:
    """Have this site take part only in runs under secure aggregation that begin from now on.

    Raises:
        StorageError, DiskFullError: the database cannot be written.
    """
    if folder.study_keys.exists():
        shutil.rmtree(folder.study_keys)
    begin_memory(folder.database)
