"""Sites that run secure sums in memory, with a server that does as a test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from quorate.aggregation import ring
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.words import pack_words
from quorate.identity import RunId, SiteName
from quorate.process.randomness import SystemRandomness
from quorate.secagg.opening import Opener, Opening
from quorate.secagg.participant import Ballot, Member, Participant
from quorate.secagg.study_key import StudyKey
from quorate.secagg.terms import Hello, Layout, Terms, sum_digest
from quorate.study.rules import Rules

STUDY = b"s" * 32
RUN = RunId("run-1")
MODEL = b"m" * 32


@dataclass
class Party:
    """One site. ``votes`` is what it wrote down for good."""

    name: SiteName
    signing: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sealing: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    ballots: list[Ballot] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()


class Consortium:
    """Sites with a study key; ``begin`` starts a sum."""

    def __init__(self, sites: int, colluders: int | None = None, dimension: int = 10, bound: float = 1.0) -> None:
        self.parties = [Party(SiteName(f"site-{number:03}")) for number in range(sites)]
        self.roster = {party.name: party.key for party in self.parties}
        self.rules = Rules(sites, min(1, sites - 2) if colluders is None else colluders)
        self.study_key = StudyKey(b"k" * 32)
        self.dimension = dimension
        self.packing = Packing(bound, sites)

    @property
    def polynomials(self) -> int:
        return self.packing.polynomials(self.dimension)

    def terms(self, round_number: int = 1, attempt: int = 0) -> Terms:
        return Terms(STUDY, RUN, round_number, attempt)

    def begin(
        self,
        terms: Terms,
        present: Sequence[int] | None = None,
        model: bytes = MODEL,
        *,
        ciphertext: bool = True,
        counts: int = 3,
    ) -> Sum:
        here = [self.parties[place] for place in (present if present is not None else range(len(self.parties)))]
        return Sum(self, terms, Layout(self.polynomials if ciphertext else 0, counts), here, model)

    def member(self, party: Party) -> Member:
        return Member(party.name, self.roster, self.rules, party.signing, self.study_key)


class Sum:
    """One sum, from hello to opening; a test may leave out or change any of it."""

    def __init__(self, consortium: Consortium, terms: Terms, layout: Layout, here: list[Party], model: bytes) -> None:
        self.consortium = consortium
        self.terms = terms
        self.layout = layout
        self.here = here
        self.model = model
        self.sites = {party.name: Participant(terms, consortium.member(party), SystemRandomness()) for party in here}
        self.hellos: tuple[Hello, ...] = tuple(site.hello() for site in self.sites.values())
        self.total = np.zeros((layout.polynomials, ring.DEGREE), np.uint64)
        self.counts: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.boxes: dict[SiteName, dict[SiteName, bytes]] = {}
        self.uploads: dict[SiteName, npt.NDArray[np.uint64]] = {}
        self.masked: dict[SiteName, npt.NDArray[np.uint64]] = {}

    def upload(self, name: SiteName, update: npt.NDArray[np.float32], counts: Sequence[int]) -> None:
        """One site's upload, added to the sum."""
        site, packing = self.sites[name], self.consortium.packing
        site.begin_upload(self.hellos, self.model, self.layout)
        if self.layout.polynomials:
            weight = WEIGHT_ONE // len(self.sites)
            lanes = packing.encode(update, weight)[0] >> packing.delta_bits
            self.uploads[name] = site.encrypt(0, lanes, packing.delta_bits)
            ring.add(self.total, self.uploads[name])
        masked, self.boxes[name] = site.finish_upload(counts)
        if not self.counts.size:
            self.counts = np.zeros(len(masked), np.uint64)
        ring.add(self.counts, masked)
        self.masked[name] = masked

    def upload_all(self, seed: int = 0) -> dict[SiteName, npt.NDArray[np.float32]]:
        """Everybody uploads a random update and the counts 1, 2, 3, ..."""
        rng = np.random.default_rng(seed)
        updates = {}
        for name in self.sites:
            bound = self.consortium.packing.bound
            updates[name] = rng.uniform(-bound, bound, self.consortium.dimension).astype(np.float32)
            self.upload(name, updates[name], range(1, self.layout.counts + 1))
        return updates

    @property
    def survivors(self) -> tuple[SiteName, ...]:
        return tuple(sorted(self.boxes))

    @property
    def ciphertext(self) -> bytes:
        return b"c" * 32 if self.layout.polynomials else b""

    @property
    def digest(self) -> bytes:
        return sum_digest(self.ciphertext, pack_words(self.counts))

    def boxes_for(self, name: SiteName) -> dict[SiteName, bytes]:
        return {sender: boxes[name] for sender, boxes in self.boxes.items() if name in boxes}

    def opening(self) -> Opening:
        """Everybody votes and reveals, and the server puts it together."""
        by_name = {party.name: party for party in self.here}
        votes = tuple(
            self.sites[name].vote(self.survivors, self.digest, self.boxes_for(name), by_name[name].ballots.append)
            for name in self.survivors
        )
        reveals = tuple(self.sites[name].reveal(votes) for name in self.survivors)
        counts = pack_words(self.counts)
        model = self.consortium.study_key.model(self.model)
        return Opening(self.hellos, model, self.survivors, counts, self.ciphertext, votes, reveals)

    def open(self, opening: Opening) -> tuple[npt.NDArray[np.int64], tuple[int, ...]]:
        """The exact integer sums and the counts, as any site of the study gets them."""
        consortium, sums = self.consortium, np.zeros(0, np.int64)
        polynomials = self.layout.polynomials
        opener = Opener(opening, self.terms, polynomials, consortium.roster, consortium.rules, consortium.study_key)
        if polynomials:
            opened = opener.piece(self.total, consortium.packing)
            sums = consortium.packing.decode(opened, consortium.dimension)
        return sums, opener.counts()
