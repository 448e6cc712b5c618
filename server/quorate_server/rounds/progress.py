"""How far a study's run is: what is committed after each step, and all that a new worker process needs to go on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.run import RoundResult


def _read_blob(value: object) -> Blob:
    return value if isinstance(value, Blob) else Blob(BlobId(bytes.fromhex(value[0])), value[1])  # type: ignore[index]  # our own JSON


def _read_bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else bytes.fromhex(str(value))


StoredBlob = Annotated[
    Blob, BeforeValidator(_read_blob), PlainSerializer(lambda blob: [blob.id.hex(), blob.size], return_type=list[Any])
]
StoredBytes = Annotated[bytes, BeforeValidator(_read_bytes), PlainSerializer(bytes.hex, return_type=str)]


class StoredSum(BaseModel):
    """A sum that was closed; the summed updates (if any) and what opens them lie in the spool."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    round_number: int
    attempt: int
    updates: StoredBlob | None = Field(validation_alias=AliasChoices("updates", "ciphertext"))  # its name before
    opening: StoredBlob


class StudyProgress(BaseModel):
    """Committed steps of a study's run.

    ``summed`` counts the sums that are closed, ``trained`` the rounds among them, ``evaluated`` the rounds done.
    ``sums`` holds all after the checkpoint, which ``checkpoint_sealer`` sealed and signed where states are sealed.
    ``attempt`` grows whenever a sum is begun anew, ``reached`` is the last sum for which a quorum uploaded, ``waiting``
    holds the results of rounds whose evaluation is not known yet, and ``keys`` the sealed parts of the study key.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    dimension: int = 0
    trained: int = 0
    evaluated: int = 0
    checkpoint: StoredBlob | None = None
    checkpoint_round: int = 0
    checkpoint_sealer: tuple[str, StoredBytes] | None = None
    released: bool = False
    keys: StoredBlob | None = None
    summed: int = 0
    attempt: int = 0
    reached: int = -1
    sums: tuple[StoredSum, ...] = ()
    waiting: tuple[dict[str, Any], ...] = ()
    is_of_an_older_version: bool = False
    """Without protection, and begun when its rounds had other steps: what is left of it is where it was."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_versions(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "open_result" not in content:
            return content
        if content.get("keys") is None and content.get("prepared"):
            known = ("dimension", "trained", "evaluated", "released")
            return {name: content[name] for name in known} | {"is_of_an_older_version": True}
        return content | {"sums": content.get("secure_sums", [])}

    def blobs(self) -> set[BlobId]:
        """What must stay in the spool for this run."""
        kept = {blob.id for stored in self.sums for blob in (stored.updates, stored.opening) if blob is not None}
        return kept | {blob.id for blob in (self.checkpoint, self.keys) if blob is not None}

    def after(self, **changes: object) -> StudyProgress:
        return self.model_copy(update=changes)


def result_to_json(result: RoundResult) -> dict[str, Any]:
    return {
        "round_number": result.round_number,
        "contributed": list(result.contributed),
        "metrics": dict(result.metrics),
        "phase_seconds": dict(result.phase_seconds),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "missing": dict(result.missing),
    }


def result_from_json(value: dict[str, Any]) -> RoundResult:
    contributed = tuple(SiteName(name) for name in value["contributed"])
    return RoundResult(**{**value, "contributed": contributed})
