"""``image-classifier``: parameters, independence of images, and learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from quorate.errors import ContributionError, StudyError
from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.datasets import load_images, register
from quorate_client.tasks.image import TASK, ImageParameters
from quorate_client.tasks.models.image import build, predict
from tests.client.data_kit import a_site
from tests.client.real_data import real_data

SCHEMA: dict[str, Any] = {"kind": "images", "height": 12, "width": 10, "channels": 1, "classes": ["left", "right"]}
SMALL: dict[str, Any] = {"schema": SCHEMA, "filters": [4, 8]}


def bars(folder: Path, records: int = 200) -> Dataset:
    """Noise with a bright bar in the left or in the right half."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 120, (records, 12, 10)).astype(np.uint8)
    labels = np.arange(records) % 2
    for image, right in zip(pixels, labels, strict=True):
        column = rng.integers(0, 5) + 5 * right
        image[2:10, column] = 200
    np.savez(folder / "bars.npz", images=pixels, labels=labels)
    return register("bars", folder / "bars.npz", SCHEMA, 0.3, a_site(folder))


def trained(session: Any, rounds: int) -> npt.NDArray[np.float32]:
    session.begin(session.statistics())
    theta: npt.NDArray[np.float32] = session.initial()
    for number in range(1, rounds + 1):
        theta = theta + session.train(theta, number, number, 0.0)[0]
    return theta


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"filters": []}, "filters: "),
        ({"filters": [0]}, "filters.0: Input should be greater than or equal to 1"),
        ({"filters": [4, 4, 4, 4]}, "Expected at most 3 filters for 12 x 10 pixels: each block halves them; got 4"),
        ({"normalisation": "batch"}, "normalisation: Input should be 'group' or 'none'"),
        ({"hidden": [8]}, "hidden: unknown key"),
        ({"schema": {**SCHEMA, "channels": 2}}, "channels: Input should be 1 or 3"),
        (
            {
                "schema": {
                    "kind": "tabular",
                    "columns": [{"name": "a", "type": "flag"}],
                    "label": {"name": "b", "classes": [0, 1]},
                }
            },
            "Expected a schema of the kind 'images'; got 'tabular'",
        ),
    ],
)
def test_wrong_parameters_are_told_by_key_with_what_is_allowed(change: dict[str, Any], told: str) -> None:
    TASK.check({"schema": SCHEMA})
    with pytest.raises(StudyError) as caught:
        TASK.check({"schema": SCHEMA, **change})
    assert told in str(caught.value)


@pytest.mark.parametrize("normalisation", ["group", "none"])
def test_it_learns_where_a_bar_is(tmp_path: Path, normalisation: str) -> None:
    parameters = {**SMALL, "normalisation": normalisation, "optimizer": "adam", "learning_rate": 0.01, "epochs": 3}
    session = TASK.open(parameters, bars(tmp_path), 3)
    metrics = session.evaluate(trained(session, 5)).metrics()
    assert metrics["auc"] > 0.95
    assert metrics["accuracy"] > 0.9


def test_a_released_model_gives_what_was_evaluated(tmp_path: Path) -> None:
    dataset = bars(tmp_path)
    session = TASK.open(SMALL, dataset, 3)
    theta = trained(session, 2)
    arrays, metadata = session.export(theta)
    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["classes"] == ["left", "right"]
    _, test = load_images(dataset, TASK.schema(SMALL))
    chances = predict(arrays, metadata, test.pixels)
    assert chances.shape == (test.records, 2)
    accuracy = ((chances[:, 1] > 0.5) == test.labels).mean()
    assert accuracy == pytest.approx(session.evaluate(theta).metrics()["accuracy"])


def test_the_output_of_an_image_does_not_depend_on_the_others() -> None:
    schema = TASK.schema({"schema": SCHEMA})
    module = build(ImageParameters(filters=(4, 8)), schema).train()
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())
    pixels = torch.randint(0, 256, (6, 1, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([module(pixels[place : place + 1]) for place in range(6)])
    np.testing.assert_allclose(module(pixels).detach().numpy(), alone.detach().numpy(), atol=1e-5)


def test_all_sites_start_with_the_same_model_and_sum_nothing(tmp_path: Path) -> None:
    dataset = bars(tmp_path)
    one, two = (TASK.open(SMALL, dataset, 3) for _ in range(2))
    assert one.statistics() == ()
    for session in (one, two):
        session.begin(())
    assert one.initial().tobytes() == two.initial().tobytes()
    with pytest.raises(ContributionError, match="sums no statistics"):
        one.begin((1,))


def test_colour_images_of_several_classes_are_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(150) % 3
    pixels = rng.integers(0, 100, (150, 8, 8, 3)).astype(np.uint8)
    pixels[np.arange(150), 3, 4, labels] = 255
    np.savez(tmp_path / "dots.npz", images=pixels, labels=labels)
    schema = {"kind": "images", "height": 8, "width": 8, "channels": 3, "classes": ["red", "green", "blue"]}
    dataset = register("dots", tmp_path / "dots.npz", schema, 0.3, a_site(tmp_path))
    parameters = {"schema": schema, "filters": [8], "optimizer": "adam", "learning_rate": 0.02, "epochs": 4}
    session = TASK.open(parameters, dataset, 3)
    tally = session.evaluate(trained(session, 4))
    assert tally.classes == 3
    assert tally.metrics()["accuracy"] > 0.9


@pytest.mark.slow
def test_real_breast_ultrasound_is_learnt(tmp_path: Path) -> None:
    with np.load(real_data("breastmnist/breastmnist.npz")) as data:
        images, labels = (
            np.concatenate([data[f"{part}_{what}"] for part in ("train", "val", "test")])
            for what in ("images", "labels")
        )
    np.savez(tmp_path / "breast.npz", images=images, labels=labels)
    schema = {
        "kind": "images",
        "height": 28,
        "width": 28,
        "channels": 1,
        "classes": ["malignant", "benign"],
        "positive": "malignant",
    }
    dataset = register("breast", tmp_path / "breast.npz", schema, 0.2, a_site(tmp_path))
    session = TASK.open({"schema": schema, "optimizer": "adam", "learning_rate": 0.001}, dataset, 3)
    assert session.evaluate(trained(session, 15)).metrics()["auc"] > 0.82  # logistic regression on pixels: 0.800
