"""Published studies and what the sites answered."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine, delete, insert, select

from quorate.errors import AlreadyExistsError, InputError, NotFoundError
from quorate.identity import SiteName
from quorate.study.readiness import Readiness
from quorate.study.study import Study
from quorate_server.consortium.tables import (
    ANSWERS,
    READINESS,
    STUDIES,
    AnswerRecord,
    ReadinessRecord,
    StudyRecord,
    parsed,
    readiness_of,
)

ANSWERS_ALLOWED = ("approved", "rejected")
_MIN_PREFIX_DIGITS = 6


class StudyRegister:
    """The part of the registry that is about studies. Each method is one short transaction."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock

    def publish(self, study: Study) -> StudyRecord:
        """Keep a study. The same study again is the same study.

        Raises:
            AlreadyExistsError: another study has this name.
        """
        digest = study.digest()
        with self._engine.begin() as db:
            named = db.execute(select(STUDIES.c.digest).where(STUDIES.c.name == study.name)).scalar()
            if named is None:
                db.execute(
                    insert(STUDIES).values(
                        digest=digest,
                        name=study.name,
                        canonical=study.canonical(),
                        published_unix_s=self._clock(),
                    )
                )
            elif named != digest:
                raise AlreadyExistsError(
                    f"Another study is called {study.name}",
                    got=f"digest {digest.hex()[:12]}, not {named.hex()[:12]}",
                    action="Give the changed study another name: sites approved the old one under this name",
                )
        return self.study(study.name)

    def studies(self) -> tuple[StudyRecord, ...]:
        """All studies, oldest first."""
        with self._engine.connect() as db:
            rows = db.execute(select(STUDIES).order_by(STUDIES.c.published_unix_s, STUDIES.c.name)).all()
            answers = db.execute(select(ANSWERS).order_by(ANSWERS.c.site)).all()
        return tuple(
            StudyRecord(
                row.digest,
                row.name,
                row.canonical,
                row.published_unix_s,
                tuple(
                    AnswerRecord(answer.site, answer.answer, answer.signature, answer.at_unix_s)
                    for answer in answers
                    if answer.study_digest == row.digest
                ),
            )
            for row in rows
        )

    def study(self, text: str) -> StudyRecord:
        """The study of that name, or whose digest begins with ``text``. Raises NotFoundError."""
        records = self.studies()
        found = [record for record in records if record.name == text]
        if not found and len(text) >= _MIN_PREFIX_DIGITS:
            found = [record for record in records if record.digest.hex().startswith(text)]
        if len(found) != 1:
            raise NotFoundError(
                f"There is no study {text[:80]!r}",
                expected=f"a name, or at least {_MIN_PREFIX_DIGITS} digits of a digest that belong to one study only",
                action="`quorate study list` shows all studies",
            )
        return found[0]

    def record_answer(self, digest: bytes, site: SiteName, answer: str, signature: bytes) -> None:
        """Keep a site's answer; a later one takes its place. The signature was checked by the caller.

        Raises:
            InputError: neither approved nor rejected. NotFoundError: the site has no part in such a study.
        """
        if answer not in ANSWERS_ALLOWED:
            raise InputError("The answer to a study is malformed", expected=" or ".join(ANSWERS_ALLOWED))
        self._require_part(digest, site)
        with self._engine.begin() as db:
            db.execute(delete(ANSWERS).where(ANSWERS.c.study_digest == digest, ANSWERS.c.site == site))
            db.execute(
                insert(ANSWERS).values(
                    study_digest=digest, site=site, answer=answer, signature=signature, at_unix_s=self._clock()
                )
            )

    def record_readiness(self, digest: bytes, site: SiteName, readiness: Readiness) -> None:
        """Keep what a site says of itself and a study; a later report takes its place, so there is one of each.

        Raises:
            NotFoundError: the site has no part in such a study.
        """
        self._require_part(digest, site)
        with self._engine.begin() as db:
            db.execute(delete(READINESS).where(READINESS.c.study_digest == digest, READINESS.c.site == site))
            db.execute(
                insert(READINESS).values(
                    study_digest=digest,
                    site=site,
                    code=readiness.code,
                    at_unix_s=self._clock(),
                )
            )

    def readiness(self, digest: bytes) -> tuple[ReadinessRecord, ...]:
        """What the sites of a study said last, by site."""
        with self._engine.connect() as db:
            rows = db.execute(
                select(READINESS).where(READINESS.c.study_digest == digest).order_by(READINESS.c.site)
            ).all()
        return tuple(map(readiness_of, rows))

    def _require_part(self, digest: bytes, site: SiteName) -> None:
        with self._engine.connect() as db:
            canonical = db.execute(select(STUDIES.c.canonical).where(STUDIES.c.digest == digest)).scalar()
        if canonical is None or site not in parsed(canonical).site_names:
            raise NotFoundError(f"There is no study {digest.hex()[:12]} in which {site} has a part")
