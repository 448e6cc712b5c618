"""Sites that are killed while they make a synthetic data set. Run by ``test_crashes``.

``python -m tests.client.synthetic.dying_make TEMPLATE FOLDER``: for each step of making a copy of the site TEMPLATE in
FOLDER that is killed there; the last one lives.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from quorate_client.site.folder import SiteFolder
from tests.dying import killed_at

from .site_kit import opened_site

STEPS_OF = ("synthetic/making.py", "synthetic/kept.py", "approval/datasets.py")
"""Where the steps are taken and the disk is written. A step is a line of them; the ledger's own are tested there."""


def die(template: Path, folder: Path) -> None:
    """Forks, which is quick; nothing here has threads."""
    shutil.copytree(template, folder / "first")
    with opened_site(SiteFolder(folder / "first")) as opened:
        opened.make()  # what takes long the first time, once for all children
    shutil.rmtree(folder / "first")
    for step in range(1, 10_000):
        site = folder / f"{step:04}"
        shutil.copytree(template, site)
        child = os.fork()
        if child == 0:
            sys.settrace(killed_at(step, STEPS_OF))
            with opened_site(SiteFolder(site)) as opened:
                opened.make()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    die(Path(sys.argv[1]), Path(sys.argv[2]))
