"""What a synthetic data set was asked for, and the seed that follows from it under a key of the site's own.

The same request gives the same table, to the byte: that is what lets an interrupted make be repeated without paying
twice. So everything stands in it that could let the same noise meet other sums: the records, the schema, the epsilon,
the generator's code, and what computes (Python, numpy, the processor), for the last bit of a product may decide which
columns are measured together. If anything of it differs, it is another request, with other noise and another payment.

What is told of the records is keyed. A bare digest of the source's file would let whoever knows all of its records but
one try out the last.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rfc8785

from quorate import __version__
from quorate.study.import_closure import reached_files
from quorate_client.site.agreement import Dataset
from quorate_client.site.folder import SiteFolder
from quorate_client.site.lasting_key import lasting_key

_OUR_CODE = frozenset({"quorate", "quorate_client"})
KEY_FILE = "synthetic.key"
_RESTORE = f"Restore keys/{KEY_FILE} from a backup: under it synthetic data sets are known again"
_SEED, _SOURCE, _WATERMARK = (f"quorate/synthetic-{each}/v1\x00".encode() for each in ("seed", "source", "watermark"))


@dataclass(frozen=True, slots=True)
class Request:
    """All that a table depends on, beside the site's key.

    Args:
        source: What the records are known by (``source_fingerprint``), hex.
        schema: Of the table that is made.
        delta: 0 without privacy.
        transformations: What was done to the columns, in words.
        program: What computes (``program``).
    """

    name: str
    dataset: str
    source: str
    schema: Mapping[str, Any]
    rows: int
    epsilon: float | None
    delta: float
    generator: str
    transformations: tuple[str, ...]
    program: Mapping[str, Any]

    @property
    def canonical(self) -> bytes:
        return rfc8785.dumps(asdict(self) | {"transformations": list(self.transformations)})

    @property
    def digest(self) -> bytes:
        """SHA-256, by which the ledger knows it."""
        return hashlib.sha256(self.canonical).digest()

    def seed(self, key: bytes) -> bytes:
        """32 bytes that nobody knows who has not the site's key."""
        return hmac.digest(key, _SEED + self.canonical, "sha256")


def site_key(site: SiteFolder) -> bytes:
    """The key of all that is made here; itself made on first use.

    Raises:
        WrongStateError: it is gone while something that was made under it is there, or it is no key.
    """
    return lasting_key(site.keys / KEY_FILE, site.synthetic, "of synthetic data sets", _RESTORE)


def watermark_key(key: bytes) -> bytes:
    return hmac.digest(key, _WATERMARK, "sha256")


def known_watermark_key(site: SiteFolder) -> bytes | None:
    """None where nothing was ever made."""
    path: Path = site.keys / KEY_FILE
    return watermark_key(path.read_bytes()) if path.exists() else None


def derived(seed: bytes, purpose: str) -> bytes:
    """A seed of its own for one use, 32 bytes."""
    return hmac.digest(seed, purpose.encode(), "sha256")


def commitment(seed: bytes) -> str:
    """Binds the site to the seed and tells nothing of it."""
    return hashlib.sha256(seed).hexdigest()


def source_fingerprint(key: bytes, source: Dataset) -> str:
    """Of a real data set as it is registered: its file, its schema, and what of it is held out."""
    index = None if source.index is None else source.index.name
    about: dict[str, Any] = {
        "content": source.content,
        "schema": source.schema,
        "held_out": source.test_fraction,
        "index": index,
    }
    return hmac.digest(key, _SOURCE + rfc8785.dumps(about), "sha256").hex()


def program(modules: tuple[str, ...]) -> dict[str, Any]:
    """What computes: the code that these modules reach, and what it runs on.

    Args:
        modules: Those that a table depends on.
    """
    code = hashlib.sha256()
    for path, digest in sorted(reached_files(modules, _OUR_CODE).items()):
        code.update(f"{path}\x00{digest.hex()}\n".encode())
    arithmetic = np.show_config(mode="dicts") or {}
    return {
        "quorate": __version__,
        "code": code.hexdigest(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "instructions": arithmetic.get("SIMD Extensions", {}).get("found", []),
        "processors": len(os.sched_getaffinity(0)),
    }
