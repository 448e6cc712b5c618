"""Reads labelled images from an .npz file or from a folder for each class, and checks them against the schema.

Nothing is unpickled, and nothing is unpacked before its size is known to be what the schema says. File names may name
patients: an image is called by its number.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from quorate.errors import DataError
from quorate_client.tasks.data.problems import Problems
from quorate_client.tasks.data.schema import ImageSchema

_MAX_BYTES = 16 * 1024**3
_MODES = {1: "L", 3: "RGB"}
_SUFFIXES = (".png", ".jpg", ".jpeg")
_DAMAGED = (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Images:
    """Checked records.

    Args:
        pixels: [records, channels, height, width].
        labels: [records] the number of the class in the schema's ``class_order``.
        units: [records] equal numbers for the images of one unit; None where each is a unit of its own.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64] | None = None

    @property
    def records(self) -> int:
        return len(self.labels)

    def part(self, chosen: npt.NDArray[np.bool_]) -> Images:
        """The records for which ``chosen`` is true."""
        units = None if self.units is None else self.units[chosen]
        return Images(self.pixels[chosen], self.labels[chosen], units)


def read_images(path: Path, schema: ImageSchema) -> Images:
    """Read and check all images.

    Raises:
        DataError: they cannot be read, or do not fit the schema. Names positions and no values.
    """
    try:
        if path.is_dir():
            return _read_folders(path, schema)
        if path.suffix.lower() == ".npz":
            return _read_npz(path, schema)
    except OSError as error:
        raise DataError(f"Cannot read {path}", got=error.strerror or "a damaged file") from None
    raise DataError(f"{path} holds no images that can be read", expected="an .npz file or a folder for each class")


def read_image_units(path: Path, name: str) -> list[str]:
    """Whose each image is: the array ``name`` of the .npz file, as text, [records].

    Raises:
        DataError: the file has no such array, or is a folder: there only file names say whose an image is, and they
            do so in as many ways as there are hospitals.
    """
    if path.is_dir():
        raise DataError(
            f"{path} is a folder, in which nothing says whose an image is",
            expected=f"an .npz file with an array {name}: one whole number or word for each image",
            action="Put the images into an .npz file, or register them without a unit: privacy is then per image",
        )

    def fits_units(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        return "" if len(shape) == 1 and dtype.kind in "iuU" else "N whole numbers or words"

    try:
        with zipfile.ZipFile(path) as archive:
            units = [str(unit) for unit in _array(path, archive, name, fits_units).tolist()]
    except (OSError, zipfile.BadZipFile):
        raise DataError(f"{path} is not an .npz file") from None
    problems = Problems("image")
    problems.add([place for place, unit in enumerate(units, 1) if not unit.strip()], f"its {name} is empty")
    problems.refuse_if_any(path, "Say of each image whose it is")
    return units


def _read_npz(path: Path, schema: ImageSchema) -> Images:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise DataError(f"{path} is not an .npz file") from None
    height, width, channels = schema.height, schema.width, schema.channels
    shapes = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])

    def fits_images(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        wanted = " or ".join("N x " + " x ".join(map(str, one)) for one in shapes)
        return "" if shape[1:] in shapes and dtype == np.uint8 else f"{wanted} numbers of the type uint8"

    def fits_labels(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        return "" if shape[1:] in ((), (1,)) and dtype.kind in "iu" else "N whole numbers"

    with archive:
        pixels = _array(path, archive, schema.file.images, fits_images)
        labels = _array(path, archive, schema.file.labels, fits_labels).reshape(-1)
    if len(pixels) != len(labels):
        raise DataError(
            f"{path} does not hold one label for each image", expected=f"{len(pixels)} labels", got=str(len(labels))
        )
    if not len(labels):
        raise DataError(f"{path} holds no records")
    problems = Problems("image")
    wrong = (labels < 0) | (labels >= len(schema.classes))
    problems.add((1 + np.flatnonzero(wrong)).tolist(), f"its label is not in 0 to {len(schema.classes) - 1}")
    problems.refuse_if_any(path, "Correct the labels: they are places in the schema's list of classes")
    numbers = np.array([schema.class_order.index(name) for name in schema.classes], dtype=np.int64)
    pixels = pixels.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    return Images(np.ascontiguousarray(pixels), numbers[labels.astype(np.int64)])


def _array(
    path: Path, archive: zipfile.ZipFile, key: str, mismatch: Callable[[tuple[int, ...], np.dtype[Any]], str]
) -> npt.NDArray[Any]:
    """One array of the file, after its header was found to be what is expected and of a bearable size."""
    try:
        with archive.open(f"{key}.npy") as member:
            shape, dtype = _header(member)
            wanted = mismatch(shape, dtype) if shape else "an array"
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if wanted or size > _MAX_BYTES:
                got = f"{' x '.join(map(str, shape))} of the type {dtype.name}"
                raise DataError(
                    f"The array {key} of {path} is not as the schema says",
                    expected=wanted or f"at most {_MAX_BYTES} bytes",
                    got=got,
                )
        with archive.open(f"{key}.npy") as member:
            array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
            return array
    except KeyError:
        raise DataError(f"{path} has no array {key}", action="Name the arrays in the schema under file") from None
    except _DAMAGED:
        raise DataError(f"The array {key} of {path} is damaged, or no plain array") from None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _read_folders(path: Path, schema: ImageSchema) -> Images:
    """Images in the order of the classes and, in a class, of the file names."""
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")
    if folders != sorted(schema.classes):
        absent = [name for name in schema.classes if name not in folders]
        raise DataError(
            f"{path} does not hold one folder for each class",
            expected=", ".join(schema.classes),
            got=f"{len(folders)} folders" + (f", without {', '.join(absent)}" if absent else ""),
        )
    files = [
        (file, number)
        for number, name in enumerate(schema.class_order)
        for file in sorted((path / name).iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{path} holds no images", expected="files named .png, .jpg or .jpeg")
    shape = (len(files), schema.height, schema.width, schema.channels)
    if int(np.prod(shape, dtype=object)) > _MAX_BYTES:
        raise DataError(f"{path} is too large", expected=f"at most {_MAX_BYTES} bytes of pixels")
    pixels = np.zeros(shape, dtype=np.uint8)
    problems = Problems("image")
    for place, (file, _) in enumerate(files):
        if problem := _decode(file, schema, pixels[place]):
            problems.add([place + 1], problem)
    problems.refuse_if_any(
        path, "Correct these images; they are counted from 1, class by class and in a class by file name"
    )
    labels = np.array([number for _, number in files], dtype=np.int64)
    return Images(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels)


def _decode(file: Path, schema: ImageSchema, target: npt.NDArray[np.uint8]) -> str:
    """Fill ``target`` [height, width, channels]; returns what is wrong. The size is checked before pixels are read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.size != (schema.width, schema.height):
                return f"not {schema.width} pixels wide and {schema.height} high"
            if image.mode != _MODES[schema.channels]:
                return f"not {schema.channels} channel{'s' if schema.channels > 1 else ''} of 8 bits"
            target[:] = np.asarray(image).reshape(target.shape)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "cannot be read"
    return ""
