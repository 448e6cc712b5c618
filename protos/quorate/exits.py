"""What the exit codes of all three commands mean."""

from __future__ import annotations

from quorate.errors import IdentityError, InputError, QuorateError, RoundError, SiteRefusalError, TransportError

OTHER = 1
INPUT = 2
REFUSED = 3
UNREACHABLE = 4
RUN_NOT_COMPLETED = 5


def exit_code(error: QuorateError) -> int:
    """The code with which a command ends on this error: grouped, as the errors are, by who must act."""
    match error:
        case InputError():
            return INPUT
        case IdentityError() | SiteRefusalError():
            return REFUSED
        case TransportError():
            return UNREACHABLE
        case RoundError():
            return RUN_NOT_COMPLETED
        case _:
            return OTHER
