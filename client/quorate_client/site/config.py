"""The daemon's configuration: ``config.toml`` in the site's folder, read once into one frozen value.

What the administrator *allows* is not here but in ``policy.toml`` (``policy.py``), which may belong to another person.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quorate.errors import ConfigError
from quorate.process.storage_errors import os_refusal

Model = TypeVar("Model", bound=BaseModel)
_HOST_AND_PORT = r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}"
Address = Annotated[str, Field(pattern=f"^{_HOST_AND_PORT}$")]
AddressOrNothing = Annotated[str, Field(pattern=f"^({_HOST_AND_PORT})?$")]
ProxyUrl = Annotated[str, Field(pattern=r"^http://([^\s/@]+@)?[^\s/@:]+:[0-9]{1,5}/?$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(BaseModel):
    """How the daemon runs. Every key has a default, so an empty or missing file is fine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: Address | None = Field(default=None, description="host:port of the server, if it has moved")
    proxy: ProxyUrl | None = Field(default=None, description="HTTP CONNECT proxy, http://[user:password@]host:port")
    metrics_listen: AddressOrNothing = Field(
        default="127.0.0.1:9465", description='host:port to listen on; "" switches metrics off'
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least that is logged")
    log_json: bool = Field(default=False, description="log one JSON object a line, for collectors")
    keep_days: Positive = Field(
        default=7.0, description="how long answers, and all of a run but its final model, are kept after its last work"
    )
    task_memory_mb: int | None = Field(default=None, ge=512, description="most memory of a task; absent: the machine's")


def read_config(path: Path) -> Config:
    """Read ``config.toml``; a missing file means the defaults.

    Raises:
        ConfigError: naming the file, each wrong key and what was expected. StorageError: it is not this user's to read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except PermissionError as error:
        raise os_refusal(error) from error
    except OSError as error:
        raise ConfigError(f"Cannot read {path}", got=error.strerror or "", action="See what is there") from error
    except UnicodeDecodeError as error:
        raise _not_toml(path, error) from error
    return parse_toml(text, path, Config)


def parse_toml(text: str, path: Path, model: type[Model]) -> Model:
    """What was read from ``path``, as a frozen value.

    Raises:
        ConfigError: naming the file, each wrong key and what was expected.
    """
    try:
        return _parsed(text, model)  # type: ignore[return-value]  # lru_cache loses it
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, error) from error
    except ValidationError as error:
        problems = [_problem(model, problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()]
        raise ConfigError(
            f"{path} has {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            got="; ".join(problems[:8]),
            action="Correct these keys and start again",
        ) from error


@lru_cache(maxsize=8)
def _parsed(text: str, model: type[BaseModel]) -> BaseModel:
    """The policy is read for every instruction, and is nearly always the same text again."""
    return model.model_validate(tomllib.loads(text))


def _not_toml(path: Path, error: ValueError) -> ConfigError:
    return ConfigError(f"{path} is not TOML", got=str(error), action="Correct it there and start again")


def _problem(model: type[BaseModel], location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location)
    if kind == "extra_forbidden" and len(location) > 1:
        return f"{key}: unknown key"
    if kind == "extra_forbidden":
        return f"{key}: unknown key, expected one of {', '.join(sorted(model.model_fields))}"
    if kind == "string_pattern_mismatch" and key in model.model_fields:
        return f"{key}: expected {model.model_fields[key].description}"
    return f"{key}: {message}"
