"""Writes the file of made-up records: CSV for a table, .npz for images, as a site registers its own.

Both are written with what Python itself has, so that an operator's machine needs no numpy. A table has no place for a
remark, so the file's name says what it is, and with it every list that shows where a data set lies.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from quorate.errors import InputError, SchemaError
from quorate.process.private_files import create_new
from quorate.study.mock import MAX_ROWS, MockImages, delimiter, mock_table


def mock_name(stem: str, schema: Mapping[str, Any]) -> str:
    """What such a file is called where nobody names it.

    Raises:
        SchemaError: it is no schema.
    """
    return f"{stem}.mock{_suffix(schema)}"


def write_mock(path: Path, schema: Mapping[str, Any], rows: int, seed: int) -> None:
    """Write a new file of made-up records. The same schema, number of rows and seed give the same content.

    Args:
        path: Its name must hold the word "mock".
        schema: Plain JSON, such as a study's ``task.parameters.schema``.

    Raises:
        InputError: of the path or the number of rows. AlreadyExistsError: there is a file of that name.
            NotFoundError: its folder is not there. SchemaError.
    """
    suffix = _suffix(schema)
    if "mock" not in path.name.lower() or path.suffix != suffix:
        raise InputError(
            f"{path.name} does not say that it holds made-up records of this kind",
            expected=f"a name with the word mock in it that ends in {suffix}",
            action=f"Name it {mock_name(path.name.split('.')[0], schema)}",
        )
    if not 1 <= rows <= MAX_ROWS:
        raise InputError("That many records are not made up", expected=f"1 to {MAX_ROWS}", got=str(rows))
    with os.fdopen(create_new(path, "Move it away, or name another file with --output"), "wb") as file:
        try:
            _WRITERS[suffix](file, schema, rows, seed)
        except BaseException:
            path.unlink()
            raise


def _suffix(schema: Mapping[str, Any]) -> str:
    match schema.get("kind"):
        case "tabular":
            return ".csv"
        case "images":
            return ".npz"
        case _:
            raise SchemaError("No records can be made up from this schema", expected='kind "tabular" or "images"')


def _write_table(file: BinaryIO, schema: Mapping[str, Any], rows: int, seed: int) -> None:
    header, columns = mock_table(schema, rows, seed)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=delimiter(schema), lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    text.detach()


def _write_images(file: BinaryIO, schema: Mapping[str, Any], rows: int, seed: int) -> None:
    images = MockImages(schema, rows, seed)
    with zipfile.ZipFile(file, "w") as archive:
        _write_array(archive, images.images_name, "|u1", images.shape, images.pixels())
        _write_array(archive, images.labels_name, "<i8", (rows,), [struct.pack(f"<{rows}q", *images.labels)])
        if images.unit_name is not None:
            _write_array(archive, images.unit_name, "<i8", (rows,), [struct.pack(f"<{rows}q", *images.units)])


def _write_array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[bytes]
) -> None:
    """In numpy's format, version 1.0: magic, length of the header, header up to a multiple of 64 bytes, data."""
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same seed gives the same bytes
    with archive.open(member, "w", force_zip64=True) as array:
        array.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for piece in pieces:
            array.write(piece)


_WRITERS = {".csv": _write_table, ".npz": _write_images}
