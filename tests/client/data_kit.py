"""A site's folder in which data sets can be registered, with a key that splits them alike in each run of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quorate.process.private_files import write_private
from quorate_client.site.folder import SiteFolder
from quorate_client.tasks.data.record_index import RecordIndex, write_index


def a_site(folder: Path) -> SiteFolder:
    site = SiteFolder(folder / "site")
    site.create()
    fix_split(site)
    return site


def an_index(folder: Path, records: int) -> Path:
    """The fingerprints of so many records that nobody reads."""
    return write_index(folder, RecordIndex(("a",), 0.2, "a key", np.arange(records, dtype=np.uint64), None))


def fix_split(site: SiteFolder) -> None:
    """Give the site the key of its records' fingerprints: by it the test part is drawn."""
    key = site.keys / "records.key"
    if not key.exists():
        write_private(key, b"r" * 32)
