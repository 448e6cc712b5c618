"""How a site gets its identity and keeps it: redeeming an invitation, renewing the certificate.

The keys are made here and stay; the server sees a certificate request and the public keys. Joining can be repeated
after a crash at any point: the keys are kept, and by them the server recognises the repetition.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import structlog
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quorate.errors import (
    AlreadyExistsError,
    InputError,
    InvitationExpiredError,
    InvitationSpentError,
    ServerIdentityError,
    ServerUnreachableError,
)
from quorate.identity import parse_name
from quorate.study.study import Name
from quorate.v1 import enrolment_pb2
from quorate.wire.messages import member_to_proto
from quorate_client.connection.channel import enrolment_stub, open_blocking_channel, translated
from quorate_client.site.config import Address
from quorate_client.site.database import make_state
from quorate_client.site.folder import SiteFolder
from quorate_client.site.forgotten_votes import leave_secure_runs
from quorate_client.site.keys import (
    Credentials,
    Identity,
    SiteKeys,
    certificate_life,
    check_certificate,
    has_identity,
    load_identity,
    make_or_load_keys,
    save_certificate,
    save_identity,
    site_subject,
)

log = structlog.get_logger()

CALL_TIMEOUT_S = 20.0

Pem = Annotated[str, Field(pattern=r"^-----BEGIN [A-Z ]+-----\n")]


class Invitation(BaseModel):
    """The content of an invitation file. It holds a key: whoever has the file can join in the site's place, once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["quorate.invitation/1"]
    consortium: Name
    address: Address
    site: Name
    ca_pem: Pem
    certificate_pem: Pem
    key_pem: Pem = Field(repr=False)
    expires_unix_s: int

    def credentials(self) -> Credentials:
        """The bootstrap certificate: it may redeem the invitation and nothing else."""
        return Credentials(self.ca_pem.encode(), self.certificate_pem.encode(), self.key_pem.encode())


def read_invitation(path: Path) -> Invitation:
    """Read an invitation file.

    Raises:
        InputError: it is not there or not an invitation; the message names wrong fields and holds no content.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read the invitation {path}", got=error.strerror or "") from error
    except ValueError as error:
        raise InputError(
            f"{path} is not an invitation",
            expected="the JSON file that `quorate site invite` wrote",
            action="Have the operator send the file again, as a file",
        ) from error
    try:
        return Invitation.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        wrong = sorted({".".join(str(part) for part in problem["loc"]) or "the whole" for problem in problems})
        raise InputError(
            f"{path} is not an invitation that this version can read",
            expected="the JSON file that `quorate site invite` wrote",
            got="wrong fields: " + ", ".join(wrong[:8]),
            action="Have the operator send the file again, unchanged",
        ) from error


def check_authority(invitation: Invitation, ca_pem: bytes) -> None:
    """Compare the invitation's authority with one that came by another way.

    Raises:
        ServerIdentityError: they differ: somebody changed the invitation. InputError: not a certificate.
    """
    try:
        known, invited = (x509.load_pem_x509_certificate(pem) for pem in (ca_pem, invitation.ca_pem.encode()))
    except ValueError as error:
        raise InputError("The authority's certificate cannot be read", expected="one certificate in PEM") from error
    if known != invited:
        raise ServerIdentityError(
            "The invitation is for another authority than the one given with --ca",
            action="Do not use this invitation; ask the operator, over another channel, where it comes from",
        )


@dataclass(frozen=True, slots=True)
class Joining:
    """What an attempt to join needs beside the invitation.

    Args:
        proxy: HTTP CONNECT proxy, if any.
        keep_keys: The site has joined before and only its certificate is to be replaced.
        clock: Unix seconds. Used to explain a failure, never to refuse: this machine's clock may be wrong.
    """

    folder: SiteFolder
    proxy: str | None
    keep_keys: bool
    clock: Callable[[], float]


def join(joining: Joining, invitation: Invitation) -> Identity:
    """Redeem an invitation: make keys, have the TLS key certified, put the identity in place.

    Raises:
        AlreadyExistsError: this folder has an identity. InvitationSpentError, InvitationExpiredError and other
        IdentityErrors: the server refuses. ServerUnreachableError: nothing was changed, try again.
    """
    identity = Identity(invitation.consortium, parse_name(invitation.site), invitation.address)
    _check_free(joining, identity)
    joining.folder.create()
    make_state(joining.folder.database)
    keys = make_or_load_keys(joining.folder.keys)
    request = enrolment_pb2.RedeemRequest(
        csr_pem=keys.request(identity.site), member=member_to_proto(keys.member(identity.site))
    )
    issued = _redeem(joining, invitation, request)
    ca_pem = invitation.ca_pem.encode()
    check_certificate(issued.certificate_pem, ca_pem, keys, site_subject(identity))
    if joining.keep_keys:  # perhaps because the folder was copied back, or its database is new
        leave_secure_runs(joining.folder)
    save_identity(joining.folder.keys, identity, ca_pem, issued.certificate_pem)
    return identity


def renewal_due_unix_s(certificate_pem: bytes) -> float:
    """When a third of a certificate's life is left."""
    start, end = (moment.timestamp() for moment in certificate_life(certificate_pem))
    return end - (end - start) / 3


async def renew(stub: object, address: str, folder: SiteFolder, keys: SiteKeys, identity: Identity) -> None:
    """Have the TLS key certified anew, over a channel that the present certificate still opens.

    Raises:
        QuorateError: the server refuses or cannot be reached; the present certificate stays in place.
    """
    request = enrolment_pb2.RenewRequest(csr_pem=keys.request(identity.site))
    with translated(address):
        issued = await stub.Renew(request, timeout=CALL_TIMEOUT_S)  # type: ignore[attr-defined]  # generated code
    ca_pem = (folder.keys / "ca.pem").read_bytes()
    check_certificate(issued.certificate_pem, ca_pem, keys, site_subject(identity))
    save_certificate(folder.keys, issued.certificate_pem)


def _check_free(joining: Joining, wanted: Identity) -> None:
    if not has_identity(joining.folder.keys):
        return
    present = load_identity(joining.folder.keys)
    same = (present.consortium, present.site) == (wanted.consortium, wanted.site)
    if same and joining.keep_keys:
        return
    raise AlreadyExistsError(
        f"The folder {joining.folder.root} already holds the identity of {present.site} in {present.consortium}",
        action="Use --keep-keys if the operator invited this site again to replace its certificate"
        if same
        else "Name another folder with --state for another identity",
    )


def _redeem(
    joining: Joining, invitation: Invitation, request: enrolment_pb2.RedeemRequest
) -> enrolment_pb2.Certificate:
    try:
        with (
            open_blocking_channel(invitation.credentials(), invitation.address, joining.proxy) as channel,
            translated(invitation.address),
        ):
            issued: enrolment_pb2.Certificate = enrolment_stub(channel).Redeem(request, timeout=CALL_TIMEOUT_S)
            return issued
    except InvitationSpentError as error:
        raise InvitationSpentError(
            f"The invitation of {invitation.site} was used before, with other keys than those in this folder",
            action="If it was used here with another folder, name that with --state. If nobody at this site used it, "
            "somebody else did: tell the operator, who revokes the site and invites it again",
        ) from error
    except ServerUnreachableError as error:
        # A server refuses an expired certificate before any call, and that looks as if it were down.
        if invitation.expires_unix_s < joining.clock():
            raise InvitationExpiredError(
                f"The invitation of {invitation.site} has expired, and the server did not answer to it",
                action=f"Ask the operator for a new one: `quorate site invite {invitation.site}`. "
                "If it should still be valid, check the clock of this machine",
            ) from error
        raise
