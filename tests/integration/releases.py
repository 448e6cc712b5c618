"""Other releases of Quorate than the one that is tested: its own files, with other numbers in them.

A process runs such a release, and all that it starts, if the folder is first among its packages.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from quorate import __version__
from quorate.versions import SERIES
from quorate_client.site.database import STATE_LAYOUT
from quorate_server.storage.database import LAYOUT

THIS = __version__
NEXT_LAYOUT = f"{int(LAYOUT) + 1:04}"
NEXT_SITE_LAYOUT = STATE_LAYOUT.newest + 1

_REVISION = f'''"""another column"""
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{NEXT_LAYOUT}", "{LAYOUT}"


def upgrade() -> None:
    op.add_column("sessions", sa.Column("added", sa.Integer, nullable=False, server_default="0"))
'''
_STEP = """
from dataclasses import replace
from quorate_client.site.layout import Step
_ANOTHER = Step("another table", "CREATE TABLE added (number INTEGER PRIMARY KEY) STRICT;")
STATE_LAYOUT = replace(STATE_LAYOUT, steps=(*STATE_LAYOUT.steps, _ANOTHER))
"""


def release(folder: Path, version: str, series: Sequence[str] = SERIES) -> Path:
    """The files of this release, as another version. Returns the folder."""
    for package in ("quorate", "quorate_client", "quorate_server"):
        found = find_spec(package)
        assert found is not None
        assert found.origin is not None
        shutil.copytree(Path(found.origin).parent, folder / package)
    _change(folder / "quorate" / "__init__.py", f"__version__ = {version!r}")
    _change(folder / "quorate" / "versions.py", f"SERIES: Final = {tuple(series)!r}")
    return folder


def next_release(folder: Path) -> tuple[Path, str]:
    """The first release of the next series, which knows one more layout of the server's database and of a site's.

    Returns:
        Its folder and its version.
    """
    major, minor = SERIES[-1].split(".")
    series = f"{major}.{int(minor) + 1}"
    made = release(folder, f"{series}.0", (*SERIES, series))
    storage = made / "quorate_server" / "storage"
    (storage / "migrations" / "versions" / f"layout_{NEXT_LAYOUT}.py").write_text(_REVISION)
    _change(storage / "database.py", f'LAYOUT = "{NEXT_LAYOUT}"')
    with (made / "quorate_client" / "site" / "database.py").open("a") as module:
        module.write(_STEP)
    return made, f"{series}.0"


def _change(file: Path, line: str) -> None:
    """Put an assignment in the place of the one that is there."""
    name = line.partition(" = ")[0]
    text, changed = re.subn(rf"^{re.escape(name)} = .*$", line, file.read_text(), flags=re.MULTILINE)
    assert changed == 1, f"{name} in {file}"
    file.write_text(text)
