"""The number-theoretic transform, in SEAL's order.

In the *NTT domain* (SEAL's "NTT form": Harvey's order, bit-reversed powers of the smallest primitive 4096th root of
unity) products of polynomials are word by word; every word here is bit for bit the one that SEAL has, which
``seal_reference`` checks before the first sum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quorate.aggregation.ring import (
    BLOCK,
    DEGREE,
    MODULUS,
    ROOT,
    UQ,
    Factor,
    Integers,
    Polynomials,
    Scratch,
    as_factor,
    multiply,
    shrink,
    times,
)


def to_ntt(polynomials: Polynomials | Integers) -> Polynomials:
    """Coefficients to the NTT domain.

    Args:
        polynomials: (k, DEGREE), as words below MODULUS or as signed integers of at most MODULUS in size.
    """
    words = np.empty(polynomials.shape, dtype=np.uint64)
    workspace = _Workspace()
    for block in _blocks(polynomials):
        x = workspace.polynomials(block.stop - block.start)
        np.copyto(x, polynomials[block], casting="unsafe")
        _canonical(_forward(x, workspace), words[block], workspace)
    return words


def from_ntt(polynomials: Polynomials) -> Polynomials:
    """From the NTT domain to coefficients; (k, DEGREE) words below MODULUS both."""
    words = np.empty(polynomials.shape, dtype=np.uint64)
    workspace = _Workspace()
    for block in _blocks(polynomials):
        x = workspace.polynomials(block.stop - block.start)
        np.copyto(x, polynomials[block], casting="unsafe")
        _canonical(_backward(x, workspace), words[block], workspace)
    return words


# The stages of the transform pair words that are 1024, 512, .. 1 places apart. numpy is fast only along long runs, so
# the first six stages (1024 .. 32 apart) work on a polynomial as it is, and the last five on its transpose: 32 places
# within a group by 64 groups, where words one place apart are 64 apart.
_GROUPS = 64
_PLACES = DEGREE // _GROUPS


def _root_powers(root: int) -> Polynomials:
    """root^i at place bit-reverse(i), for i < DEGREE."""
    powers, power = np.empty(DEGREE, dtype=np.uint64), 1
    for i in range(DEGREE):
        powers[int(f"{i:011b}"[::-1], 2)] = power
        power = power * root % MODULUS
    return powers


def _stages(root: int, scale: int = 1) -> tuple[list[Factor], list[Factor]]:
    """The factors of the stages on polynomials and on their transposes, in the shapes in which ``_halves`` cuts them.

    Args:
        root: Of unity. scale: what the factor of the first stage is multiplied by.
    """
    powers = _root_powers(root)
    on_rows, on_columns = [], []
    groups = 1
    while groups < DEGREE:
        here = powers[groups : 2 * groups]
        if groups == 1:
            here = multiply(here, np.array([scale], dtype=np.uint64))
        if groups < _GROUPS:
            on_rows.append(as_factor(np.repeat(here, DEGREE // groups // 2).reshape(groups, -1)))
        else:
            # Group g of this stage lies in group g // inner of the first six stages. Repeated along the places, so
            # that numpy sees one long run.
            inner = groups // _GROUPS
            shape = (inner, _PLACES // inner // 2, _GROUPS)
            repeated = np.broadcast_to(here.reshape(_GROUPS, inner).T[:, None, :], shape)
            on_columns.append(as_factor(repeated.reshape(inner, -1)))
        groups *= 2
    return on_rows, on_columns


_INVERSE_DEGREE = pow(DEGREE, -1, MODULUS)
_FORWARD_ROWS, _FORWARD_COLUMNS = _stages(ROOT)
# The last stage of the way back is the mirror of the first; the division by DEGREE is folded into it.
_BACKWARD_ROWS, _BACKWARD_COLUMNS = _stages(pow(ROOT, -1, MODULUS), _INVERSE_DEGREE)
_SCALE = as_factor(np.array([_INVERSE_DEGREE], dtype=np.uint64))


class _Workspace:
    """The memory that transforming needs; made for each call, so that threads share nothing."""

    def __init__(self) -> None:
        self._polynomials = np.empty((BLOCK, DEGREE), dtype=np.int64)
        self._other = np.empty((BLOCK, DEGREE), dtype=np.int64)
        self._scratch = Scratch.of((BLOCK, DEGREE))

    def polynomials(self, count: int) -> Integers:
        return self._polynomials[:count]

    def other(self, count: int) -> Integers:
        return self._other[:count]

    def scratch(self, shape: tuple[int, ...]) -> Scratch:
        return self._scratch.shaped(shape)


def _blocks(polynomials: Polynomials | Integers) -> Iterator[slice]:
    if polynomials.ndim != 2 or polynomials.shape[1] != DEGREE:
        raise ValueError(f"polynomials have the shape (k, {DEGREE})")
    for start in range(0, len(polynomials), BLOCK):
        yield slice(start, min(start + BLOCK, len(polynomials)))


def _halves(x: Integers, groups: int) -> tuple[Integers, Integers]:
    """The words that a stage pairs, as views: polynomials cut into groups of two halves each."""
    cut = x.reshape(len(x), groups, 2, -1)
    return cut[:, :, 0], cut[:, :, 1]


def _forward(x: Integers, workspace: _Workspace) -> Integers:
    """The transform (Cooley-Tukey butterflies u + wv, u - wv), without a single reduction; x is spoiled.

    From at most 1 q, eleven times X -> X + (1 + 0.76 X): at most 1162 q at the end, by (*).
    """
    here, there = x, workspace.other(len(x))
    for factor in _FORWARD_ROWS:
        _butterflies(here, there, factor, workspace)
        here, there = there, here
    here, there = _transpose(here, there, _GROUPS, _PLACES)
    for factor in _FORWARD_COLUMNS:
        _butterflies(here, there, factor, workspace)
        here, there = there, here
    here, _ = _transpose(here, there, _PLACES, _GROUPS)
    return here


def _backward(x: Integers, workspace: _Workspace) -> Integers:
    """The inverse (Gentleman-Sande butterflies u + v, w(u - v)) of words of up to 2048 q; x is spoiled.

    They are brought to (0.5 + 2^-40) q first. A stage makes at most max(2 X, 1 + 1.52 X) of X: 1.77 q, 3.69 q and then
    twice as much each time, 945 q after ten stages. In the last one u + v and u - v are at most 1890 q, which still
    fits, and their products are at most 1438 q.
    """
    shrink(x, workspace.scratch(x.shape))
    here, there = _transpose(x, workspace.other(len(x)), _GROUPS, _PLACES)
    for factor in reversed(_BACKWARD_COLUMNS):
        _inverse_butterflies(here, there, factor, workspace)
        here, there = there, here
    here, there = _transpose(here, there, _PLACES, _GROUPS)
    for factor in reversed(_BACKWARD_ROWS):
        _inverse_butterflies(here, there, factor, workspace)
        here, there = there, here
    first, _ = _halves(here, 1)
    times(first, _SCALE, first, workspace.scratch(first.shape))
    return here


def _transpose(here: Integers, there: Integers, rows: int, columns: int) -> tuple[Integers, Integers]:
    """Each polynomial as a matrix of so many rows, transposed into ``there``; then the two have changed places."""
    np.copyto(there.reshape(-1, columns, rows), here.reshape(-1, rows, columns).swapaxes(1, 2))
    return there, here


# From one array to another and not in place: where an output interleaves with an input, numpy spends as long proving
# that they share nothing as it does adding.
def _butterflies(here: Integers, there: Integers, factor: Factor, workspace: _Workspace) -> None:
    u, v = _halves(here, len(factor.words))
    sums, differences = _halves(there, len(factor.words))
    scratch = workspace.scratch(u.shape)
    times(v, factor, scratch.products, scratch)
    np.add(u, scratch.products, out=sums)
    np.subtract(u, scratch.products, out=differences)


def _inverse_butterflies(here: Integers, there: Integers, factor: Factor, workspace: _Workspace) -> None:
    u, v = _halves(here, len(factor.words))
    sums, products = _halves(there, len(factor.words))
    scratch = workspace.scratch(u.shape)
    np.add(u, v, out=sums)
    np.subtract(u, v, out=scratch.products)
    times(scratch.products, factor, products, scratch)


def _canonical(x: Integers, out: Polynomials, workspace: _Workspace) -> None:
    """Words of up to 2048 q to [0, q); x is spoiled. After shrinking, a negative word is one that q makes smaller."""
    shrink(x, workspace.scratch(x.shape))
    words = x.view(np.uint64)
    np.add(words, UQ, out=out)
    np.minimum(out, words, out=out)
