"""What the words of a category column look like. The list is public; how often each word is used is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from quorate_client.synthetic.identifying.check_digits import checked_numbers
from quorate_client.synthetic.identifying.sign import Kind, Sign

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}")
_SSN = re.compile(r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}")
_PHONE = re.compile(
    r"\+\d[\d\s()./-]{6,18}"  # with a country's code
    r"|(?!\d{4,5}-\d{3,4}-\d{1,2}$)(?=(?:\D*\d){7,15}\D*$)\(?0[1-9][\d]*\)?[\s./-]+[\d\s/.-]{4,}"  # no drug code (NDC)
    r"|0[1-9]\d{7,12}"
    r"|(?:1[ .-])?\(?[2-9]\d{2}\)?[ .-]\d{3}[ .-]\d{4}"  # North America
)
_DATE = re.compile(
    r"(?:18|19|20)\d{2}[-./](?:0?[1-9]|1[0-2])[-./](?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-./](?:0?[1-9]|[12]\d|3[01])[-./](?:(?:18|19|20)\d{2})"
)
_STREET = re.compile(
    r"\w+(?:straße|strasse|str\.|gasse|allee|straat|laan|gracht)\s*\d+.*"
    r"|(?:\w{3,}|am |im )weg\s+\d+.*"
    r"|(?:rue|avenue|boulevard|calle|avenida|via|viale|corso|piazza|c/)\s+\D{3,}\d+.*"
    r"|\d+,?\s+(?:(?:rue|avenue|boulevard)\s+.+|.*\b(?:street|st|road|rd|avenue|ave|lane|drive|close)\b\.?.*)",
    re.IGNORECASE,
)
_POSTCODE = re.compile(
    r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}"  # British
    r"|[1-9]\d{3} ?[A-Z]{2}"  # Dutch
    r"|[A-Z]\d[A-Z] ?\d[A-Z]\d"  # Canadian
    r"|(?:[A-Z]{1,2}-)?\d{4,5} [^\W\d]{3,}.*"  # with the town
)
_FIVE_DIGITS = re.compile(r"\d{5}")
_FAMILY_FIRST = re.compile(r"[^\W\d_]['’\w-]+, ?(?P<given>[^\W\d_]['’\w-]*\.?)(?: [^\W\d_]\.?)?")
_GIVEN_NAMES = (
    # Common ones that are no other words, in six languages.
    "anna hans peter klaus wolfgang jürgen juergen dieter michael thomas andreas stefan stephan christian sabine "
    "petra monika ursula brigitte renate karin susanne claudia birgit heike katrin kathrin julia katharina lukas "
    "jonas niklas leon john james robert william david richard joseph charles christopher daniel matthew anthony "
    "steven andrew joshua kevin mary patricia jennifer linda elizabeth barbara susan jessica sarah karen lisa nancy "
    "margaret sandra ashley emily emma jean pierre jacques philippe nicolas françois francois laurent isabelle "
    "nathalie sylvie catherine marie sophie camille maria josé jose antonio manuel francisco javier carlos miguel "
    "carmen ana isabel dolores pilar teresa lucía lucia johannes jan pieter hendrik willem cornelis annemarie "
    "johanna sanne femke giuseppe giovanni luigi francesco mario paolo marco alessandro giulia chiara francesca "
    "elena luca mohammed muhammad ahmed ali fatma ayse mehmet mustafa"
)
_GIVEN = frozenset(_GIVEN_NAMES.split())
_SAINT = re.compile(r"\b(?:st\.?|saint|sainte|sankt|san|santa|sant)[ -]+\w+", re.IGNORECASE)
_LONG_TEXT = 25
_MANY_WORDS = 4
_FEW_RECORDS = 20
"""With fewer nothing can be said about how often words are used."""


def said_by_words(words: Sequence[str], places: npt.NDArray[np.int64]) -> Sign | None:
    """
    Args:
        words: The schema's list.
        places: [records] of each record's word in it, without missing ones.
    """
    for kind, test, needed, share, reason in _SHAPES:
        found = sum(map(test, words))
        if found >= needed and found >= share * len(words):
            return Sign(kind, reason)
    return checked_numbers(words) or _free_text(words, places)


def _free_text(words: Sequence[str], places: npt.NDArray[np.int64]) -> Sign | None:
    """Long texts that hardly two records share. The long answers of a questionnaire are shared by many."""
    if len(places) < _FEW_RECORDS:
        return None
    counts = np.bincount(places, minlength=len(words))
    rare = np.flatnonzero((counts > 0) & (counts <= 2)).tolist()
    long = [at for at in rare if len(words[at]) >= _LONG_TEXT and len(words[at].split()) >= _MANY_WORDS]
    if counts[long].sum() < len(places) / 2:
        return None
    return Sign("free text", "long texts of several words, which hardly two records share")


def _person(text: str) -> bool:
    letters = re.findall(r"[^\W\d_]+", _SAINT.sub("", text))
    return len(letters) <= 4 and not _GIVEN.isdisjoint(letter.lower() for letter in letters)


def _family_first(text: str) -> bool:
    """Not any inverted heading (Fracture, Femur): the second part is an initial or a given name."""
    match = _FAMILY_FIRST.fullmatch(text)
    return match is not None and (match["given"].endswith(".") or match["given"].lower() in _GIVEN)


def _whole(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda text: pattern.fullmatch(text) is not None


_SHAPES: tuple[tuple[Kind, Callable[[str], bool], int, float, str], ...] = (
    ("e-mail", lambda text: _EMAIL.search(text) is not None, 1, 0, "words with an e-mail address in them"),
    ("date of birth", _whole(_DATE), 5, 0.9, "words that are days of a calendar"),
    ("insurance number", _whole(_SSN), 2, 0.5, "words shaped like social security numbers"),
    ("telephone number", _whole(_PHONE), 3, 0.5, "words shaped like telephone numbers"),
    ("address", _whole(_STREET), 3, 0.3, "words that name streets and houses"),
    ("address", _whole(_POSTCODE), 3, 0.9, "words shaped like postcodes"),
    ("address", _whole(_FIVE_DIGITS), 10, 0.9, "many words of five digits, as postcodes are"),
    ("name", _family_first, 2, 0.1, "words of the form Family, Given"),
    ("name", _person, 3, 0.3, "words with people's given names"),
)
"""Kind, test, how many words and which share of them must pass it."""
