"""Images from .npz files and folders: sizes are checked before anything is unpacked, and nothing is unpickled."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from quorate.errors import DataError
from quorate_client.tasks.data.images import Images, read_images
from quorate_client.tasks.data.schema import ImageSchema, parse_schema


def schema(**changes: Any) -> ImageSchema:
    content = {"kind": "images", "height": 4, "width": 3, "channels": 1, "classes": ["ill", "well"], "positive": "ill"}
    parsed = parse_schema({**content, **changes}, "The schema")
    assert isinstance(parsed, ImageSchema)
    return parsed


def pixels(*shape: int) -> npt.NDArray[np.uint8]:
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def read_npz(folder: Path, images: Any, labels: Any, **changes: Any) -> Images:
    path = folder / "records.npz"
    np.savez_compressed(path, images=images, labels=labels)
    return read_images(path, schema(**changes))


def write_folders(folder: Path, **images: list[Image.Image]) -> Path:
    root = folder / "records"
    for name, members in images.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(members):
            image.save(root / name / f"Jane-Doe-{number}.png")
    return root


def grey(*shape: int) -> Image.Image:
    return Image.fromarray(pixels(*shape))


@pytest.mark.parametrize("label_shape", [(2,), (2, 1)])
def test_arrays_become_images_by_channel_and_class_numbers_in_class_order(
    tmp_path: Path, label_shape: tuple[int, ...]
) -> None:
    images = read_npz(tmp_path, pixels(2, 4, 3), np.array([0, 1]).reshape(label_shape))
    np.testing.assert_array_equal(images.pixels, pixels(2, 1, 4, 3))
    assert images.labels.tolist() == [1, 0]  # ill is the positive class
    colour = read_npz(tmp_path, pixels(2, 4, 3, 3), [1, 1], channels=3)
    np.testing.assert_array_equal(colour.pixels, pixels(2, 4, 3, 3).transpose(0, 3, 1, 2))


def test_the_arrays_are_those_that_the_schema_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=pixels(1, 4, 3), train_labels=[1], images=[3])
    file = {"images": "train_images", "labels": "train_labels"}
    assert read_images(tmp_path / "a.npz", schema(file=file)).records == 1
    with pytest.raises(DataError, match="has no array labels"):
        read_images(tmp_path / "a.npz", schema(file={"images": "train_images"}))


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (pixels(2, 3, 4), [0, 1], "Expected N x 4 x 3 x 1 or N x 4 x 3 numbers of the type uint8; got 2 x 3 x 4"),
        (pixels(2, 4, 3, 3), [0, 1], "got 2 x 4 x 3 x 3"),
        (pixels(2, 4, 3).astype(float), [0, 1], "of the type float64"),
        (np.uint8(3), [0, 1], "The array images of"),
        (pixels(2, 4, 3), [0.5, 1], "Expected N whole numbers; got 2 of the type float64"),
        (pixels(2, 4, 3), [[0, 1], [1, 0]], "Expected N whole numbers"),
        (pixels(2, 4, 3), [0, 1, 1], "one label for each image"),
        (pixels(0, 4, 3), np.array([], dtype=int), "holds no records"),
        (pixels(4, 4, 3), [0, 2, -1, 1], "in 2 places. Got image 2: its label is not in 0 to 1; image 3: its label"),
        (pixels(1, 4, 3), np.array([{"Jane": "Doe"}]), "Expected N whole numbers; got 1 of the type object"),
    ],
)
def test_arrays_that_do_not_fit_are_told_by_shape_type_and_place(
    tmp_path: Path, images: Any, labels: Any, told: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_npz(tmp_path, images, labels)
    assert told in str(caught.value)


def npy(shape: tuple[int, ...], body: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + body


@pytest.mark.parametrize(
    "images",
    [
        npy((10**12, 4, 3), b""),  # claims to unpack into 12 TB
        npy((10**6, 4, 3), bytes(12)),  # claims 12 MB that are not there
        npy((1, 4, 3), bytes(11)),
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"Jane Doe",
        b"",
    ],
)
def test_a_member_that_lies_about_its_size_or_is_damaged_is_refused(tmp_path: Path, images: bytes) -> None:
    path = tmp_path / "records.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", npy((1,), bytes(1)))
    with pytest.raises(DataError, match="The array images of") as caught:
        read_images(path, schema())
    assert caught.value.__cause__ is None


def test_an_archive_that_vouches_for_the_lie_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", npy((10**12, 4, 3), b""))
        archive.writestr("labels.npy", npy((1,), bytes(1)))
        archive.getinfo("images.npy").file_size = 13 * 10**12
    with pytest.raises(DataError, match=r"Expected at most 17179869184 bytes; got 1000000000000 x 4 x 3"):
        read_images(path, schema())


def test_a_pickle_inside_an_archive_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
        archive.writestr("labels.npy", npy((1,), bytes(1)))
    with pytest.raises(DataError):
        read_images(path, schema())
    assert not (tmp_path / "owned").exists()


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    np.savez_compressed(path, images=pixels(50, 4, 3), labels=np.zeros(50, dtype=int))
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[:100], whole[:90] + bytes(60) + whole[150:]):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_images(path, schema())


def test_folders_become_images_with_the_positive_class_last(tmp_path: Path) -> None:
    root = write_folders(tmp_path, ill=[grey(4, 3)], well=[grey(4, 3), grey(4, 3)])
    (root / "well" / "Thumbs.db").write_bytes(b"")
    (root / ".cache").mkdir()
    images = read_images(root, schema())
    assert images.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(images.pixels[2], pixels(1, 4, 3))


def test_colour_images_are_read_by_channel(tmp_path: Path) -> None:
    root = write_folders(tmp_path, ill=[Image.fromarray(pixels(4, 3, 3))], well=[])
    np.testing.assert_array_equal(read_images(root, schema(channels=3)).pixels[0], pixels(4, 3, 3).transpose(2, 0, 1))


def test_wrong_images_are_told_by_number_and_not_by_file_name(tmp_path: Path) -> None:
    members = [grey(4, 3), grey(3, 4), grey(4, 3).convert("RGB"), Image.fromarray(pixels(4, 3).astype(np.uint16))]
    root = write_folders(tmp_path, well=members, ill=[grey(4, 3)])
    (root / "ill" / "Jane-Doe.JPG").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        read_images(root, schema())
    told = str(caught.value)
    assert "Jane" not in told
    assert "in 4 places. Got image 2: not 3 pixels wide and 4 high; image 3: not 1 channel of 8 bits" in told
    assert "image 6: cannot be read" in told


def test_an_image_that_claims_a_huge_size_is_not_unpacked(tmp_path: Path) -> None:
    root = write_folders(tmp_path, well=[grey(4, 3)], ill=[grey(4, 3)])
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    (root / "ill" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(DataError, match="image 3: cannot be read"):
        read_images(root, schema())


def test_a_truncated_image_is_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path, well=[grey(4, 3)], ill=[grey(4, 3)])
    path = root / "ill" / "Jane-Doe-0.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="image 2: cannot be read"):
        read_images(root, schema())


def test_folders_that_are_not_the_classes_are_refused_without_their_names(tmp_path: Path) -> None:
    root = write_folders(tmp_path, well=[grey(4, 3)], Jane=[])
    with pytest.raises(DataError, match="got 2 folders, without ill") as caught:
        read_images(root, schema())
    assert "Jane" not in str(caught.value)


def test_folders_without_images_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_images(write_folders(tmp_path, well=[], ill=[]), schema())
    with pytest.raises(DataError, match="Cannot read"):
        read_images(tmp_path / "absent.npz", schema())
    with pytest.raises(DataError, match=r"an \.npz file or a folder for each class"):
        read_images(tmp_path / "absent.zip", schema())
