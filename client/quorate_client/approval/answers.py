"""The site's registered data sets and its answers to studies, in its database.

The daemon looks an agreement up for every instruction, so what an administrator approves or withdraws counts from the
next instruction on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from quorate.errors import DatasetMissingError, StudyNotApprovedError
from quorate.identity import Member, SiteName
from quorate.study.approval import AnswerWord, Approval
from quorate.study.study import Study
from quorate_client.approval.datasets import Datasets
from quorate_client.site.agreement import Agreement, for_study
from quorate_client.site.database import SiteDatabase, transaction

NodeConfig = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Answer:
    """What this site's administrator said to a study. ``members`` is the roster that was pinned with it."""

    study: Study
    digest: bytes
    answer: AnswerWord
    signature: bytes
    dataset: str | None = None
    node_config: NodeConfig = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    answered_unix_s: float = 0.0


class Answers:
    """The site's answers to studies, with the roster pinned at each approval."""

    def __init__(self, state: SiteDatabase, clock: Callable[[], float]) -> None:
        self._database = state.database
        self._clock = clock
        self._datasets = Datasets(state, clock)

    def record(self, answer: Answer) -> None:
        """Put an answer in the place of an earlier one to the same study."""
        with transaction(self._database):
            self._database.execute("DELETE FROM answers WHERE digest = ?", (answer.digest,))
            self._database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    answer.digest,
                    answer.study.canonical(),
                    answer.answer,
                    answer.dataset,
                    json.dumps(answer.node_config),
                    answer.signature,
                    self._clock(),
                ),
            )
            self._database.executemany(
                "INSERT INTO roster VALUES (?, ?, ?, ?, ?)",
                [(answer.digest, m.name, m.signing_key, m.sealing_key, m.sealing_proof) for m in answer.members],
            )

    def find(self, digest: bytes) -> Answer | None:
        row = self._database.execute(f"SELECT {_ANSWER} FROM answers WHERE digest = ?", (digest,)).fetchone()  # noqa: S608  # constant
        return None if row is None else self._answer(row)

    def study(self, digest: bytes) -> Study | None:
        """The study with this digest, whatever was answered to it. The roster's signatures are not checked anew."""
        row = self._database.execute("SELECT canonical FROM answers WHERE digest = ?", (digest,)).fetchone()
        return None if row is None else _study(row[0])

    def all(self) -> list[Answer]:
        rows = self._database.execute(f"SELECT {_ANSWER} FROM answers ORDER BY answered_unix_s").fetchall()  # noqa: S608  # constant
        return [self._answer(row) for row in rows]

    def pinned_keys(self, site: SiteName) -> set[bytes]:
        """The signing keys under which this site was in a roster that was approved here."""
        rows = self._database.execute(
            "SELECT DISTINCT signing_key FROM roster JOIN answers USING (digest) "
            "WHERE name = ? AND answer = 'approved'",
            (site,),
        )
        return {row[0] for row in rows}

    def sealing_keys(self, digest: bytes) -> dict[SiteName, bytes]:
        """The X25519 keys of a study's sites, as they were pinned when it was approved here."""
        rows = self._database.execute("SELECT name, sealing_key FROM roster WHERE digest = ?", (digest,))
        return {SiteName(name): key for name, key in rows}

    def approvals(self, digest: bytes) -> list[Approval]:
        """The sites that are known to have approved a study; their signatures were checked when they came."""
        rows = self._database.execute("SELECT site, signature FROM approvals WHERE digest = ?", (digest,))
        return [Approval(SiteName(site), signature) for site, signature in rows]

    def record_approvals(self, digest: bytes, approvals: Iterable[Approval]) -> None:
        """Keep valid approvals."""
        with transaction(self._database):
            self._database.executemany(
                "INSERT OR REPLACE INTO approvals VALUES (?, ?, ?)", [(digest, a.site, a.signature) for a in approvals]
            )

    def agreement(self, digest: bytes, site: SiteName) -> Agreement:
        """The approved study with this digest.

        Raises:
            StudyNotApprovedError: the administrator has not approved it, or took the approval back.
            DatasetMissingError: its data set is no longer registered. SyntheticRefusedError: what is registered under
                that name now is synthetic and the study wants a real one, or the other way round.
        """
        # Asked for every instruction, so the roster's signatures are not checked anew each time.
        row = self._database.execute(
            "SELECT canonical, dataset, node_config FROM answers WHERE digest = ? AND answer = 'approved'", (digest,)
        ).fetchone()
        if row is None:
            raise StudyNotApprovedError(
                f"The study {digest.hex()[:12]} is not approved at this site",
                action="Read it with `quorate-client show STUDY`, then approve or reject it",
            )
        study, name, node_config = _study(row[0]), row[1], json.loads(row[2])
        dataset = self._datasets.find(name) if name is not None else None
        if name is not None and dataset is None:
            raise DatasetMissingError(
                f"The data set {name} of the study {study.name} is no longer registered",
                action="Register it again, or approve the study with another one",
            )
        return Agreement(study, digest, site, None if dataset is None else for_study(dataset, study), node_config)

    def _answer(self, row: Sequence[Any]) -> Answer:
        digest, canonical, answer, dataset, node_config, signature, answered = row
        members = self._database.execute(
            "SELECT name, signing_key, sealing_key, sealing_proof FROM roster WHERE digest = ? ORDER BY name", (digest,)
        )
        return Answer(
            _study(canonical),
            digest,
            answer,
            signature,
            dataset,
            json.loads(node_config),
            tuple(Member(SiteName(name), *keys) for name, *keys in members),
            answered,
        )


_ANSWER = "digest, canonical, answer, dataset, node_config, signature, answered_unix_s"


@lru_cache(maxsize=64)
def _study(canonical: bytes) -> Study:
    return Study.from_canonical(canonical)
