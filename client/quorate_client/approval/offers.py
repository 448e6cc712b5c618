"""Studies as the server offers them, checked against themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from quorate.errors import (
    InputError,
    KeyMismatchError,
    NotFoundError,
    QuorateError,
    StudyError,
)
from quorate.identity import Member
from quorate.study.approval import AnswerWord
from quorate.study.study import Study
from quorate.v1 import rounds_pb2
from quorate.wire.messages import member_from_proto
from quorate_client.connection.channel import open_blocking_channel, rounds_stub, translated
from quorate_client.site.config import read_config
from quorate_client.site.folder import SiteFolder
from quorate_client.site.keys import load_credentials, load_identity

CALL_TIMEOUT_S = 20.0
MIN_PREFIX = 6


@dataclass(frozen=True, slots=True)
class Offer:
    """A study as the server offers it, with the public keys of its sites. Valid once built."""

    study: Study
    digest: bytes
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        if hashlib.sha256(self.study.canonical()).digest() != self.digest:
            raise StudyError(
                f"The study {self.study.name} that the server sent is not the one that it names",
                action="Do not answer it; tell the operator",
            )
        listed = [(site.name, site.signing_key) for site in self.study.sites]
        if sorted((member.name, member.signing_key.hex()) for member in self.members) != listed:
            raise KeyMismatchError(
                f"The keys that the server shows for the sites of {self.study.name} are not those in the study",
                action="A site may have joined again: have the study published anew. If not, distrust the server",
            )


@dataclass(frozen=True, slots=True)
class Unsound:
    """What the server offers and what contradicts itself. ``name`` is the study's, if so much could be read."""

    name: str
    digest: bytes
    problem: QuorateError


@dataclass(frozen=True, slots=True)
class Offers:
    """All that the server offers. One study that is wrong (a site of it joined again, say) does not hide the others."""

    sound: tuple[Offer, ...]
    unsound: tuple[Unsound, ...]


@dataclass(frozen=True, slots=True)
class OffersClient:
    """The calls that a site's commands make."""

    stub: Any
    address: str

    def offers(self) -> Offers:
        """All studies that name this site."""
        with translated(self.address):
            reply = self.stub.ListStudies(rounds_pb2.SiteStudiesRequest(), timeout=CALL_TIMEOUT_S)
        read = read_offers(reply)
        return Offers(
            tuple(each for each in read if isinstance(each, Offer)),
            tuple(each for each in read if isinstance(each, Unsound)),
        )

    def answer(self, digest: bytes, answer: AnswerWord, signature: bytes) -> None:
        request = rounds_pb2.AnswerStudyRequest(digest=digest, answer=answer, signature=signature)
        with translated(self.address):
            self.stub.AnswerStudy(request, timeout=CALL_TIMEOUT_S)


@contextmanager
def open_offers(folder: SiteFolder) -> Iterator[OffersClient]:
    """Connect as this site for a few short calls."""
    config = read_config(folder.config)
    address = config.address or load_identity(folder.keys).address
    with open_blocking_channel(load_credentials(folder.keys), address, config.proxy) as channel:
        yield OffersClient(rounds_stub(channel), address)


def read_offers(reply: rounds_pb2.SiteStudiesReply) -> list[Offer | Unsound]:
    """Each study of the server's list, oldest first; what contradicts itself too."""
    return [_offer(each) for each in reply.studies]


def _offer(proto: rounds_pb2.SiteStudy) -> Offer | Unsound:
    name = ""
    try:
        study = Study.from_canonical(proto.canonical)
        name = study.name
        members = sorted(map(member_from_proto, proto.members), key=lambda member: member.name)
        return Offer(study, proto.digest, tuple(members))
    except QuorateError as error:
        return Unsound(name, proto.digest, error)


def find_offer(offers: Offers, text: str) -> Offer:
    """The offer with this name, or with a digest that begins so.

    Raises:
        NotFoundError: there is none. InputError: there are several. StudyError, KeyMismatchError: what the server
            sent of it contradicts itself.
    """
    found = [offer for offer in offers.sound if _is_meant(text, offer.study.name, offer.digest)]
    if not found:
        for unsound in offers.unsound:
            if _is_meant(text, unsound.name, unsound.digest):
                raise unsound.problem
        raise NotFoundError(
            f"The server offers this site no study {text}",
            expected=", ".join(offer.study.name for offer in offers.sound) or "none is published for this site",
            action=f"Give a name, or {MIN_PREFIX} or more digits of a digest; `quorate-client studies` lists all",
        )
    if len(found) > 1:
        raise InputError(
            f"{len(found)} studies fit {text}",
            expected=", ".join(offer.digest.hex()[:12] for offer in found),
            action="Give more digits of the digest",
        )
    return found[0]


def _is_meant(text: str, name: str, digest: bytes) -> bool:
    return name == text or (len(text) >= MIN_PREFIX and digest.hex().startswith(text.lower()))
