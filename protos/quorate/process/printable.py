"""What people may be shown of a text that came from elsewhere. The one rule, for terminals, logs, errors and studies.

A terminal obeys what is printed on it: escape sequences move the cursor over what was said before, set the window's
title, write to the clipboard (OSC 52); C1 controls do the same in one character. Marks of direction make a line read in
another order than it was written in, and what has no width hides in a name. Whoever administers a site decides by what
is on the screen, so that none of this may get there.
"""

from __future__ import annotations

import unicodedata

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Letters, marks and symbols to Python, and nothing to see: Unicode's Default_Ignorable_Code_Point beyond its format
# characters (fillers, joiners, variation selectors, of which 256 carry a byte each), and Braille without dots.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)


def printable(text: str) -> str:
    """The text on one line: line ends, tabs and other spaces are spaces, what steers or hides is a replacement mark."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def hidden_in(text: str) -> str:
    """The first character that ``printable`` would replace, like ``U+202E``; empty if there is none."""
    if text.isascii() and text.isprintable():
        return ""
    hidden = next((sign for sign in text if sign != REPLACEMENT and _shown(sign) == REPLACEMENT), None)
    return "" if hidden is None else f"U+{ord(hidden):04X}"


def _shown(sign: str) -> str:
    if sign in "\n\t" or unicodedata.category(sign) == "Zs":
        return " "
    return sign if sign.isprintable() and sign not in _INVISIBLE else REPLACEMENT
