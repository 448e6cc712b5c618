"""How far a study's run is: what is committed after each step, and all that a new worker process needs to go on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from quorate.identity import SiteName
from quorate.rounds.blobs import Blob, BlobId
from quorate.rounds.instruction import StudyWork, SumRef
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
    """A committed sum; its words lie in the spool."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    round_number: int
    blob: StoredBlob
    weight: int
    contributors: int


class StoredSecureSum(BaseModel):
    """A secure sum that was closed; its ciphertext (if any) and what opens it lie in the spool."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    round_number: int
    attempt: int
    ciphertext: StoredBlob | None
    opening: StoredBlob


class StudyProgress(BaseModel):
    """Committed steps of a study's run. ``trained`` counts rounds whose sum is committed, ``evaluated`` rounds done.

    Under secure aggregation ``summed`` counts the sums that are closed, ``secure_sums`` holds all after the
    checkpoint, which ``checkpoint_sealer`` sealed and signed, ``attempt`` grows whenever a sum is begun anew,
    ``keys`` the sealed parts of the study key, ``reached`` is the last sum for which a quorum uploaded, and
    ``waiting`` the results of rounds whose evaluation the sites have not told yet.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    prepared: bool = False
    dimension: int = 0
    total_weight: int = 0
    statistics: tuple[int, ...] = ()
    trained: int = 0
    evaluated: int = 0
    checkpoint: StoredBlob | None = None
    checkpoint_round: int = 0
    checkpoint_sealer: tuple[str, StoredBytes] | None = None
    sums: tuple[StoredSum, ...] = ()
    agreed_digest: StoredBytes = b""
    agreed_round: int = 0
    open_result: dict[str, Any] | None = None
    released: bool = False
    keys: StoredBlob | None = None
    summed: int = 0
    attempt: int = 0
    reached: int = -1
    secure_sums: tuple[StoredSecureSum, ...] = ()
    waiting: tuple[dict[str, Any], ...] = ()

    def work(self, newest: bytes | None = None) -> StudyWork:
        """What a site needs to arrive at the newest model. ``newest`` is the last sum's content, when it is small."""
        refs = [SumRef(s.round_number, s.blob, s.weight, s.contributors) for s in self.sums]
        if refs and newest is not None:
            last = refs[-1]
            refs[-1] = SumRef(
                last.round_number, Blob(last.blob.id, last.blob.size, newest), last.weight, last.contributors
            )
        return StudyWork(
            total_weight=self.total_weight,
            statistics=self.statistics,
            checkpoint=self.checkpoint,
            checkpoint_round=self.checkpoint_round,
            sums=tuple(refs),
            dimension=self.dimension,
            agreed_digest=self.agreed_digest,
            agreed_round=self.agreed_round,
        )

    def blobs(self) -> set[BlobId]:
        """What must stay in the spool for this run."""
        kept = {stored.blob.id for stored in self.sums}
        for secure in self.secure_sums:
            kept |= {blob.id for blob in (secure.ciphertext, secure.opening) if blob is not None}
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
