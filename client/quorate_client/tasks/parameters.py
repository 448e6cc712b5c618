"""The parameters that the tasks of this package have in common, and how wrong ones are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from quorate.errors import SchemaError, StudyError
from quorate.study.section import Frozen
from quorate_client.tasks.data.schema import Schema, parse_schema

Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Width = Annotated[int, Field(ge=1, le=65_536)]


class LocalTraining(Frozen):
    """How a site trains in one round."""

    epochs: int = Field(default=1, ge=1, le=1000, description="passes over the training records in a round")
    batch_size: int = Field(default=32, ge=1, le=1_000_000, description="records in a step")
    learning_rate: Positive = Field(default=0.1, description="of a step at the site")
    weight_decay: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False, description="L2 penalty on the model")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="at the site; adam starts anew in each round")


Parameters = TypeVar("Parameters", bound=LocalTraining)
Kind = TypeVar("Kind", bound=Schema)


def parse_parameters(model: type[Parameters], parameters: Mapping[str, Any], task: str) -> Parameters:
    """All parameters but the schema, with defaults filled in.

    Raises:
        StudyError: naming each wrong key and what is allowed.
    """
    content = {key: value for key, value in parameters.items() if key != "schema"}
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise StudyError(
            f"The parameters of the task {task} are not valid",
            expected=f"keys among {', '.join(sorted(['schema', *model.model_fields]))}",
            got="; ".join(_problem(problem) for problem in error.errors()),
            action="Correct these keys under task.parameters in the study",
        ) from error


def schema_parameter(kind: type[Kind], parameters: Mapping[str, Any], task: str) -> Kind:
    """The schema that a study carries in ``parameters["schema"]``.

    Raises:
        StudyError: it is absent, not valid or of another kind of data.
    """
    if "schema" not in parameters:
        raise StudyError(
            f"The task {task} needs a schema in its parameters", action="Add a section task.parameters.schema"
        )
    try:
        schema = parse_schema(parameters["schema"], f"The schema in the parameters of the task {task}")
    except SchemaError as error:
        raise StudyError(error.what, got=error.got, action=error.action) from error
    if not isinstance(schema, kind):
        raise StudyError(
            f"The task {task} does not work on this kind of data",
            expected=f"a schema of the kind {kind.model_fields['kind'].annotation.__args__[0]!r}",  # type: ignore[union-attr]  # a Literal of one value
            got=repr(schema.kind),
        )
    if schema.file.unit is not None:
        raise StudyError(
            f"The schema in the parameters of the task {task} says whose each record is",
            expected="no file.unit: each site names its own column, which nobody else has to know",
            action="Remove file.unit; sites pass --unit to `quorate-client data add`",
        )
    return schema


def _problem(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    reason = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else str(reason)
