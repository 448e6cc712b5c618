"""Whether a site would work for a study: what the site says before a run is started.

It is what a site said at a moment and binds nobody: the site decides anew at each instruction.
"""

from __future__ import annotations

from dataclasses import dataclass

from quorate.errors import FrameError, is_code


@dataclass(frozen=True, slots=True)
class Readiness:
    """Args:
        code: Empty where the site would work for the study; else the code of the first thing against it.

    Raises:
        FrameError: the code is malformed.
    """

    code: str = ""

    def __post_init__(self) -> None:
        # A code is stored and shown on terminals, and may come from a hostile site.
        if self.code and not is_code(self.code):
            raise FrameError("The code of a site's report is malformed")

    @property
    def is_ready(self) -> bool:
        return not self.code
