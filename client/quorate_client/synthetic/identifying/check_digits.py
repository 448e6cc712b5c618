"""Numbers that carry a check digit or have a shape of their own, and how often chance alone would make one.

Where enough values pass that chance cannot be the reason, the column holds such numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quorate_client.synthetic.identifying.sign import Kind, Sign

Passes = Callable[[str], bool]

_SHARE = 0.9
"""Of the values that must pass: the rest may be typed wrongly."""
_CHANCE = 1e-6
"""That so many pass in a column of other numbers."""


@dataclass(frozen=True, slots=True)
class Numbering:
    """One way to number people or accounts.

    Args:
        passes: Whether a text without blanks, dots and dashes, in capitals, is such a number.
        chance: That a text of the same length and make passes without being one.
    """

    kind: Kind
    called: str
    passes: Passes
    chance: float


def checked_numbers(texts: Sequence[str]) -> Sign | None:
    """The numbering that distinct values belong to."""
    bare = [re.sub(r"[\s.\-/]", "", text).upper() for text in texts]
    for numbering in NUMBERINGS:
        passing = sum(map(numbering.passes, bare))
        enough = math.log(_CHANCE) / math.log(numbering.chance)
        if passing >= max(enough, _SHARE * len(bare)):
            return Sign(numbering.kind, f"its values pass the check of {numbering.called}")
    return None


def kvnr(text: str) -> bool:
    """German health insurance: a letter (as 01 to 26), eight digits weighted 1 and 2 in turn, cross sums modulo 10."""
    if not re.fullmatch(r"[A-Z]\d{9}", text):
        return False
    digits = f"{ord(text[0]) - ord('A') + 1:02}{text[1:9]}"
    return sum(sum(divmod(int(digit) * (1 + at % 2), 10)) for at, digit in enumerate(digits)) % 10 == int(text[9])


def nhs_number(text: str) -> bool:
    """Ten digits; the first nine weighted 10 to 2, eleven less the remainder modulo 11."""
    return bool(re.fullmatch(r"[1-9]\d{9}", text)) and _weighted(text, (*range(10, 1, -1), 1)) % 11 == 0


def bsn(text: str) -> bool:
    """Dutch citizens: nine digits weighted 9 to 2 and -1, modulo 11."""
    return bool(re.fullmatch(r"\d{8,9}", text)) and _weighted(text.zfill(9), (*range(9, 1, -1), -1)) % 11 == 0


def nir(text: str) -> bool:
    """French social security: 13 digits (Corsica: 2A, 2B) and 97 less their remainder modulo 97."""
    if not re.fullmatch(r"[1-478]\d{2}(0[1-9]|1[0-2]|[2-9]\d)(\d{2}|2[AB])\d{8}", text):
        return False
    number = int(text[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(text[13:])


def iban(text: str) -> bool:
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", text):
        return False
    return int("".join(str(int(letter, 36)) for letter in text[4:] + text[:4])) % 97 == 1


def ahv(text: str) -> bool:
    """Swiss social insurance: 13 digits from 756 on, with the check digit of an EAN."""
    return bool(re.fullmatch(r"756\d{10}", text)) and _weighted(text, (1, 3) * 6 + (1,)) % 10 == 0


def dni(text: str) -> bool:
    """Spanish identity: eight digits, or X, Y, Z and seven, and a letter by the remainder modulo 23."""
    if not re.fullmatch(r"[XYZ\d]\d{7}[A-Z]", text):
        return False
    number = int(text[:8].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[8]


def luhn(text: str) -> bool:
    if not re.fullmatch(r"\d{8,19}", text):
        return False
    return sum(sum(divmod(int(digit) * (1 + at % 2), 10)) for at, digit in enumerate(reversed(text))) % 10 == 0


def _shaped(pattern: str) -> Passes:
    compiled = re.compile(pattern)
    return lambda text: compiled.fullmatch(text) is not None


def _weighted(digits: str, weights: Sequence[int]) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


NUMBERINGS = (
    Numbering("insurance number", "German health insurance numbers", kvnr, 1e-2),
    Numbering(
        "insurance number",
        "German pension insurance numbers",
        _shaped(r"\d{2}(0[1-9]|[12]\d|3[01])(0[1-9]|1[0-2])\d{2}[A-Z]\d{3}"),
        1e-2,
    ),
    Numbering("insurance number", "NHS numbers", nhs_number, 0.1),
    Numbering("insurance number", "Swiss insurance numbers", ahv, 1e-3),
    Numbering("insurance number", "French social security numbers", nir, 1e-3),
    Numbering("insurance number", "Dutch citizen numbers", bsn, 0.1),
    Numbering("insurance number", "Spanish identity numbers", dni, 1e-2),
    Numbering("insurance number", "Italian tax codes", _shaped(r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"), 1e-3),
    Numbering("insurance number", "British insurance numbers", _shaped(r"[A-CEGHJ-PR-TW-Z]{2}\d{6}[A-D]"), 1e-2),
    Numbering("record number", "account numbers (IBAN)", iban, 1e-3),
    Numbering("record number", "numbers with a Luhn digit, such as of cards", luhn, 0.1),
)
