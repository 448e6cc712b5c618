"""Both databases of a site, brought to the layouts of this version."""

from __future__ import annotations

from quorate_client.ledger.file import LEDGER_LAYOUT
from quorate_client.site.database import STATE_LAYOUT
from quorate_client.site.folder import SiteFolder
from quorate_client.site.layout import Pending, pending, upgrade


def pending_upgrades(folder: SiteFolder) -> list[Pending]:
    """What ``upgrade_site`` would do.

    Raises:
        WrongStateError, LedgerError: a file is newer than this version, or too old. StorageError: it cannot be read.
    """
    return [pending(folder.database, STATE_LAYOUT), pending(folder.ledger, LEDGER_LAYOUT)]


def upgrade_site(folder: SiteFolder) -> list[Pending]:
    """Upgrade what needs it; ``held_by_this_daemon`` must be held. Either file may be ahead of the other for a while.

    Raises:
        WrongStateError, LedgerError, StorageError: as ``pending_upgrades``, before anything was changed; or a file
            cannot be written. DiskFullError.
    """
    pending_upgrades(folder)
    return [upgrade(folder.database, STATE_LAYOUT), upgrade(folder.ledger, LEDGER_LAYOUT)]
