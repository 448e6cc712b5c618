"""The TOML file in which an operator describes a study, and what its names stand for."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationError

from quorate.errors import StudyError
from quorate.identity import SiteName, parse_name
from quorate.study.attestation_section import Attestation
from quorate.study.privacy_section import Privacy
from quorate.study.robust_section import Robust
from quorate.study.section import Frozen
from quorate.study.study import (
    Guest,
    Name,
    Optimizer,
    OtherVersion,
    Protection,
    Readable,
    ReleaseFor,
    Rounds,
    Study,
    TrainingData,
    is_release_sealed,
    study_error,
)
from quorate.study.synthetic_section import Synthetic


class OperatorKey(Protocol):
    """What a study needs of the key to which its model is sealed (``secagg.release.ReleaseKey``)."""

    public_key: bytes

    def mark(self, unmarked: bytes) -> bytes: ...


class _TaskInFile(Frozen):
    """The installed task."""

    name: str = Field(description="its entry point, or flower:MODULE:ATTRIBUTE of a stock Flower ClientApp")
    also: OtherVersion | None = None
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="what the task takes; schema_file names a TOML file beside this one"
    )


class StudyFile(Readable):
    """The TOML file that an operator writes."""

    name: Name = Field(description="what operators and administrators call the study")
    purpose: str = Field(
        min_length=1, max_length=2000, description="for the people at the sites who have to approve it"
    )
    expires: date | None = Field(default=None, description="last day (UTC) on which sites work for the study")
    approvals: int | None = Field(
        default=None, ge=1, description="sites that must have approved before any works; rounds.quorum if not given"
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of the initial model")
    training_data: TrainingData = Field(
        default="real",
        description="whose records the sites train on: people's; synthetic ones that each site made of them before; or "
        "both. The model is tried on people's held-out records in any case",
    )
    sites: tuple[Name, ...] = Field(min_length=1, description="the sites that take part, by name")
    task: _TaskInFile
    rounds: Rounds
    optimizer: Optimizer = Optimizer()
    protection: Protection = Protection()
    privacy: Privacy | None = None
    synthetic: Synthetic | None = None
    attestation: Attestation | None = None
    robust: Robust | None = None
    release: ReleaseFor = ReleaseFor()
    guest: Guest | None = None

    @property
    def is_release_sealed(self) -> bool:
        """Whether the study needs the operator's key."""
        return is_release_sealed(self.protection, self.release)

    @classmethod
    def read(cls, path: Path) -> StudyFile:
        """Read and check a study file.

        ``schema_file`` among the task's parameters is replaced by ``schema``, the content of that TOML file, which is
        looked for beside the study file: sites register their data with the same file.

        Raises:
            StudyError: naming the file and each wrong key with what was expected.
        """
        content = _read_toml(path, "study")
        if "kind" in content and "label" in content:
            raise StudyError(
                f"{path} is a schema and no study",
                expected="a study file, whose task.parameters name a schema file",
                action=f"Records are made up from a schema alone with `quorate-client data mock {path}`",
            )
        parameters = content.get("task", {}).get("parameters", {}) if isinstance(content.get("task"), dict) else {}
        if isinstance(parameters, dict) and "schema_file" in parameters:
            parameters["schema"] = _read_toml(path.parent / str(parameters.pop("schema_file")), "schema")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise study_error(f"The study file {path}", error) from error

    def resolve(
        self,
        consortium: str,
        signing_keys: Mapping[SiteName, bytes],
        task_digest: Callable[[str], str],
        release_key: OperatorKey | None = None,
    ) -> Study:
        """Fill in what the names stand for.

        Args:
            consortium: The consortium's name, from the operator's credential.
            signing_keys: Ed25519 public keys of the enrolled sites.
            task_digest: Gives the digest (hex) of an installed task.
            release_key: The operator's, where ``is_release_sealed``.

        Raises:
            StudyError: a site of the study has not joined, or it does not agree with itself.
        """
        unknown = sorted(set(self.sites) - set(signing_keys))
        if unknown:
            raise StudyError(
                f"The study names {', '.join(unknown)}, not enrolled with the consortium {consortium}",
                expected=f"some of {', '.join(sorted(signing_keys)) or 'no site has joined yet'}",
                action="Invite the site with `quorate site invite NAME` and have it join, or correct the name",
            )
        sites = [{"name": name, "signing_key": signing_keys[parse_name(name)].hex()} for name in sorted(self.sites)]
        content = self.model_dump(mode="json") | {
            "consortium": consortium,
            "sites": sites,
            "task": {
                "name": self.task.name,
                "digest": task_digest(self.task.name),
                "also": self.task.also,
                "parameters": self.task.parameters,
            },
        }
        if self.is_release_sealed and release_key is not None:
            content["release"]["operator_key"] = release_key.public_key.hex()
        try:
            study = Study.model_validate(content)
            if self.is_release_sealed and release_key is not None:
                content["release"]["operator_mark"] = release_key.mark(study.unmarked()).hex()
                study = Study.model_validate(content)
        except ValidationError as error:
            raise study_error("The study", error) from error
        return study


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"Cannot read the {what} file {path}", got=error.strerror or "") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"The {what} file {path} is not TOML", got=str(error)) from error
