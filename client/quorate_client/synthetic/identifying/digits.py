"""What the digits of whole numbers say: days, telephone numbers, check digits."""

from __future__ import annotations

import math
from datetime import datetime

import numpy as np

from quorate_client.synthetic.identifying.check_digits import checked_numbers
from quorate_client.synthetic.identifying.sign import Sign
from quorate_client.tasks.data.columns import Vector

_FEW_VALUES = 10
_SAMPLE = 500
"""Distinct values that are looked at."""
_NEARLY_ALL = 0.98
_DAYS = ("%Y%m%d", "%d%m%Y", "%m%d%Y")
_YEARS = range(1880, 2100)
_COUNTRIES = ("49", "43", "41", "44", "33", "34", "31", "39", "32", "352", "351")


def said_by_digits(values: Vector) -> Sign | None:
    """
    Args:
        values: [records] whole numbers, without missing ones.
    """
    distinct = np.unique(values)
    texts = [str(int(value)) for value in distinct[:: math.ceil(len(distinct) / _SAMPLE)]]
    if len(texts) >= _FEW_VALUES:
        if sum(map(_is_day, texts)) >= _NEARLY_ALL * len(texts):
            return Sign("date of birth", "its numbers are days of a calendar")
        if _are_telephones(texts):
            return Sign("telephone number", "its numbers are built like telephone numbers")
    return checked_numbers(texts)


def _is_day(text: str) -> bool:
    for form in _DAYS if len(text) in (7, 8) else ():
        try:
            if datetime.strptime(text.zfill(8), form).year in _YEARS:
                return True
        except ValueError:
            continue
    return False


def _are_telephones(texts: list[str]) -> bool:
    """Numbers with their country's code, or without the leading 0 that a number in a table loses."""
    return (
        any(all(text.startswith(code) and 11 <= len(text) <= 13 for text in texts) for code in _COUNTRIES)
        or all(text[:2] in ("15", "16", "17") and 10 <= len(text) <= 11 for text in texts)  # German mobiles
        or all(text[0] == "7" and len(text) == 10 for text in texts)  # British mobiles
        or all(text[0] in "67" and len(text) == 9 for text in texts)  # French and Spanish mobiles
        or all(len(text) == 10 and text[0] >= "2" and text[3] >= "2" for text in texts)  # North America
    )
