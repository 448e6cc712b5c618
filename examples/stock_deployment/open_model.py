"""Open the model that a study under secure aggregation released to the operator; only the operator's key does that.

python open_model.py FOLDER RUN MODEL

FOLDER is the one that prepare.py wrote, RUN the number that ``flwr run`` told, and the model is written to MODEL.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from quorate.rounds.blobs import FRAME_BYTES
from quorate.study.study import Study
from quorate_operator.files import write_download
from quorate_operator.release import load_key, opened


def open_model(folder: Path, run: int, model: Path) -> None:
    """Check who signed the released model, and write it in the form in which it is used.

    Raises:
        KeyMismatchError: it is sealed to another key, or too few sites signed it. FrameError: it is damaged.
    """
    study = Study.from_canonical((folder / "study.json").read_bytes())
    key = load_key(folder / "operator")
    with (folder / "model.npz").open("rb") as sealed:
        write_download(model, opened(iter(partial(sealed.read, FRAME_BYTES), b""), study, f"flower-{run}", key))


if __name__ == "__main__":
    open_model(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
