"""``image-classifier``: a small convolutional network for images of one size.

It has no batch norm, whose statistics would mix the records of a batch (differential privacy needs them apart) and
would have to be averaged over sites that see different patients. Group norm normalises each image by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from quorate.errors import StudyError
from quorate_client.site.agreement import Dataset
from quorate_client.tasks.data.schema import ImageSchema
from quorate_client.tasks.parameters import LocalTraining, Positive, Width, parse_parameters, schema_parameter

if TYPE_CHECKING:
    from quorate_client.tasks.models.image import ImageSession

NAME = "image-classifier"


class ImageParameters(LocalTraining):
    """What a study may set beside the schema."""

    learning_rate: Positive = Field(default=0.05, description="of a step at the site")
    filters: tuple[Width, ...] = Field(
        default=(16, 32, 64), min_length=1, max_length=8, description="of each block: convolve, normalise, halve"
    )
    normalisation: Literal["group", "none"] = Field(default="group", description="group norm after each convolution")


class ImageClassifier:
    """The installed task."""

    def check(self, parameters: Mapping[str, Any]) -> None:
        self._parse(parameters)

    def schema(self, parameters: Mapping[str, Any]) -> ImageSchema:
        return self._parse(parameters)[1]

    def open(self, parameters: Mapping[str, Any], dataset: Dataset, seed: int) -> ImageSession:
        from quorate_client.tasks.data.datasets import load_images
        from quorate_client.tasks.models.image import ImageSession

        settings, schema = self._parse(parameters)
        training, test = load_images(dataset, schema)
        return ImageSession(settings, schema, training, test, seed)

    def _parse(self, parameters: Mapping[str, Any]) -> tuple[ImageParameters, ImageSchema]:
        settings = parse_parameters(ImageParameters, parameters, NAME)
        schema = schema_parameter(ImageSchema, parameters, NAME)
        most = min(schema.height, schema.width).bit_length() - 1
        if len(settings.filters) > most:
            raise StudyError(
                f"The parameters of the task {NAME} are not valid",
                expected=f"at most {most} filters for {schema.height} x {schema.width} pixels: each block halves them",
                got=str(len(settings.filters)),
            )
        return settings, schema


TASK = ImageClassifier()
