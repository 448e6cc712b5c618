"""How many sites it takes to open a sum: floor, votes, threshold."""

from __future__ import annotations

from dataclasses import dataclass

from quorate.errors import StudyError


@dataclass(frozen=True, slots=True)
class Rules:
    """How many sites it takes. From the study and never from a message.

    Args:
        sites: n, all that the study names.
        colluders: k, sites that may work together with the server.

    Raises:
        StudyError: so few sites do not stand so many colluders.
    """

    sites: int
    colluders: int

    def __post_init__(self) -> None:
        if self.sites < 2 or not 0 <= self.colluders <= self.sites - 2:
            raise StudyError(
                f"Secure aggregation among {self.sites} sites does not stand {self.colluders} of them that collude",
                expected="at least two sites beside them",
                action="Lower protection.colluders, or add sites to the study",
            )

    @property
    def votes(self) -> int:
        """Any two sets of so many voters share more than k sites, so one honest site would have to vote twice."""
        return (self.sites + self.colluders) // 2 + 1

    @property
    def threshold(self) -> int:
        """Shares that rebuild a key: more than the colluders have, and one fewer than voted, who may die."""
        return max(2, self.colluders + 1, self.votes - 1)

    @property
    def floor(self) -> int:
        """Least survivors: a sum of fewer says too much about each."""
        return max(min(3, self.sites), self.colluders + 2, self.votes)

    def encoded(self) -> bytes:
        return b"".join(
            number.to_bytes(4, "big") for number in (self.sites, self.colluders, self.votes, self.threshold, self.floor)
        )
