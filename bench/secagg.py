"""Secure aggregation: what a site and the server pay for 2^20 parameters, beside what others pay for the same.

CPU time of one thread, medians. Ours travels in frames of 64 polynomials, as on the wire. The peers are measured in the
same run: NVIDIA FLARE's way (TenSEAL, N = 8192, [60, 40, 40], scale 2^40, one vector to a tensor, each serialized
without its context), the best that plain TenSEAL does (N = 4096, [53, 53], symmetric), and float32 without protection.
The peers decrypt with the key that all of their sites share; ours opens with the sum of the one-time keys.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal

from bench.demo_rounds import Way, medians_s
from bench.table import Row
from quorate.aggregation import ring, rlwe, words
from quorate.aggregation.packing import Packing
from quorate.aggregation.plain import WEIGHT_ONE
from quorate.aggregation.ring import DEGREE
from quorate.process.randomness import SystemRandomness
from quorate_server.rounds.aggregate import CipherAdder

SITES, LANES = 16, 2
FRAME = 64  # polynomials
TENSORS = 16
FEW_SITES = 1
SEED = bytes(range(32))
BITS = {"flare": (8192, [60, 40, 40], 2.0**40), "tenseal": (4096, [53, 53], 2.0**40)}


@dataclass(frozen=True)
class Size:
    """Values of an update, sites of the server with many, how often a cost is measured, and the demo's rounds."""

    parameters: int
    many_sites: int
    ours_repeated: int
    peers_repeated: int
    demo_rounds: int
    warm_up: int


FULL = Size(parameters=1 << 20, many_sites=64, ours_repeated=15, peers_repeated=3, demo_rounds=60, warm_up=10)
SMALL = Size(parameters=1 << 18, many_sites=2, ours_repeated=1, peers_repeated=1, demo_rounds=2, warm_up=1)


@dataclass(frozen=True)
class Cost:
    """Of one update; times in milliseconds of CPU."""

    bytes_per_parameter: float
    encrypt: float
    add_with_parsing: float
    decrypt: float
    add_alone: float | None = None


def rows(size: Size) -> list[Row]:
    update = np.random.default_rng(1).normal(0, 0.05, size.parameters).astype(np.float32)
    # TenSEAL warns at every vector that is longer than one ciphertext.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        flare, tenseal_best = (_peer(update, name, size.peers_repeated) for name in ("flare", "tenseal"))
    ours, floats = _ours(update, size.ours_repeated), _floats(update, size.ours_repeated)
    few, many = (_server_peak_mb(update, sites, size.many_sites) for sites in (FEW_SITES, size.many_sites))
    return [
        Row("bytes per parameter, up and down", "B", ours.bytes_per_parameter, 3.3, flare.bytes_per_parameter),
        Row(
            "the same, beside the best of plain TenSEAL",
            "B",
            ours.bytes_per_parameter,
            None,
            tenseal_best.bytes_per_parameter,
        ),
        Row("the same, beside float32", "B", ours.bytes_per_parameter, None, floats.bytes_per_parameter),
        Row("encrypt a site's update, beside NVIDIA FLARE's way", "ms", ours.encrypt, 60, flare.encrypt),
        Row("the same, beside the best of plain TenSEAL", "ms", ours.encrypt, None, tenseal_best.encrypt),
        Row("the same, beside float32", "ms", ours.encrypt, None, floats.encrypt),
        Row("server, per update: the addition alone", "ms", ours.add_alone or 0, 0.6, flare.add_alone),
        Row("server, per update: parse, check, add", "ms", ours.add_with_parsing, None, flare.add_with_parsing),
        Row(
            "the same, beside the best of plain TenSEAL",
            "ms",
            ours.add_with_parsing,
            None,
            tenseal_best.add_with_parsing,
        ),
        Row("the same, beside float32", "ms", ours.add_with_parsing, None, floats.add_with_parsing),
        Row("decrypt the average, beside NVIDIA FLARE's way", "ms", ours.decrypt, 40, flare.decrypt),
        Row("the same, beside the best of plain TenSEAL", "ms", ours.decrypt, None, tenseal_best.decrypt),
        Row("the same, beside float32", "ms", ours.decrypt, None, floats.decrypt),
        _times("encryption against NVIDIA FLARE's way", flare.encrypt / ours.encrypt, 10),
        _times("server against NVIDIA FLARE's way", flare.add_with_parsing / ours.add_with_parsing, 100),
        _times("server, of both the addition alone", (flare.add_alone or 0) / (ours.add_alone or 1), None),
        _times("decryption against NVIDIA FLARE's way", flare.decrypt / ours.decrypt, 5),
        *_demo_rounds(size.demo_rounds, size.warm_up),
        Row(f"server's peak memory, {FEW_SITES} site", "MB", few),
        Row(f"server's peak memory, {size.many_sites} sites", "MB", many, few * 1.01),
    ]


def _demo_rounds(rounds: int, warm_up: int) -> list[Row]:
    """A round of the demo's study with four real sites, under secure aggregation and without protection."""
    seconds = medians_s({"none": Way("none"), "secagg": Way("secagg")}, rounds, warm_up)
    ours, plain = seconds["secagg"], seconds["none"]
    return [
        Row("a secure round of the demo, beside a plain one", "s", ours, None, plain),
        Row("times the wall time of a plain round", "x", ours / plain, 1.5),
    ]


def _times(what: str, ratio: float, goal: float | None) -> Row:
    return Row(f"times less: {what}", "x", ratio, goal, more_is_better=True)


def _ours(update: npt.NDArray[np.float32], repeated: int) -> Cost:
    packing, randomness = Packing(1.0, SITES, LANES), SystemRandomness()
    weight = WEIGHT_ONE // SITES
    key = rlwe.uniform(randomness, DEGREE)

    values = FRAME * LANES * DEGREE
    frames = range(0, packing.polynomials(len(update)), FRAME)

    def encrypt() -> list[bytes]:
        sent = []
        for first in frames:
            coefficients, _ = packing.encode(update[first * LANES * DEGREE :][:values], weight)
            sent.append(words.pack(rlwe.encrypt(coefficients, key, SEED, first, randomness)))
        return sent

    def add() -> None:
        adder.fold(partial(io.BytesIO, joined))

    def decrypt() -> npt.NDArray[np.float64]:
        averages = []
        for first, frame in zip(frames, down, strict=True):
            opened = rlwe.open_sum(words.unpack(frame), key_sum, SEED, first)
            averages.append(packing.average(packing.decode(opened, values), SITES * weight))
        return np.concatenate(averages)

    sent = encrypt()
    joined, adder = b"".join(sent), CipherAdder(packing.polynomials(len(update)))
    key_sum = np.zeros(DEGREE, dtype=np.uint64)
    for _ in range(SITES):
        add()
        ring.add(key_sum, key)
    total = words.unpack(b"".join(adder.blocks()))
    down = [words.pack(total[first : first + FRAME]) for first in frames]
    _require_close(decrypt(), update, SITES * packing.step)
    received = words.unpack(b"".join(sent))
    return Cost(
        sum(map(len, sent)) / len(update),
        _ms(encrypt, repeated),
        _ms(add, repeated),
        _ms(decrypt, repeated),
        _ms(lambda: ring.add(total, received), repeated),
    )


def _peer(update: npt.NDArray[np.float32], name: str, repeated: int) -> Cost:
    """TenSEAL: a vector to a tensor; the server parses and adds; a site decrypts and divides by the sum of weights."""
    degree, bits, scale = BITS[name]
    kind = tenseal.ENCRYPTION_TYPE.ASYMMETRIC if name == "flare" else tenseal.ENCRYPTION_TYPE.SYMMETRIC
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=bits, encryption_type=kind, n_threads=1
    )
    context.global_scale = scale
    tensors = np.split(update, TENSORS)

    def encrypt() -> list[bytes]:
        return [tenseal.ckks_vector(context, (t * np.float32(1 / SITES)).tolist()).serialize() for t in tensors]

    sent = encrypt()
    parsed = [tenseal.ckks_vector_from(context, data) for data in sent]
    totals = [tenseal.ckks_vector_from(context, data) for data in sent]

    def add(received: list[Any]) -> None:
        for total, vector in zip(totals, received, strict=True):
            total.add_(vector)

    def decrypt() -> npt.NDArray[np.float64]:
        vectors = (tenseal.ckks_vector_from(context, data) for data in sent)
        return np.concatenate([np.array(vector.decrypt()) * SITES for vector in vectors])

    _require_close(decrypt(), update, 1e-3)
    return Cost(
        sum(map(len, sent)) / len(update),
        _ms(encrypt, repeated),
        _ms(lambda: add([tenseal.ckks_vector_from(context, data) for data in sent]), repeated),
        _ms(decrypt, repeated),
        _ms(lambda: add(parsed), repeated),
    )


def _floats(update: npt.NDArray[np.float32], repeated: int) -> Cost:
    sent = update.tobytes()
    total = update.copy()
    return Cost(
        len(sent) / len(update),
        _ms(lambda: (update * np.float32(1 / SITES)).tobytes(), repeated),
        _ms(lambda: np.add(total, np.frombuffer(sent, dtype=np.float32), out=total), repeated),
        _ms(lambda: np.frombuffer(sent, dtype=np.float32) * np.float32(SITES), repeated),
    )


def _server_peak_mb(update: npt.NDArray[np.float32], sites: int, most_sites: int) -> float:
    """Peak of what numpy and Python allocate while so many updates arrive and are folded, frame by frame."""
    packing, randomness = Packing(1.0, most_sites, LANES), SystemRandomness()
    coefficients, _ = packing.encode(update, WEIGHT_ONE // most_sites)
    encrypted = rlwe.encrypt(coefficients, rlwe.uniform(randomness, DEGREE), SEED, 0, randomness)
    sent = [words.pack(encrypted[first : first + FRAME]) for first in range(0, len(encrypted), FRAME)]
    shape = coefficients.shape
    del coefficients, encrypted
    gc.collect()
    tracemalloc.start()
    try:
        total = np.zeros(shape, dtype=np.uint64)
        for _ in range(sites):
            for i, frame in enumerate(sent):
                ring.add(total[i * FRAME : (i + 1) * FRAME], words.unpack(frame))
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def _ms(work: Callable[[], object], times: int) -> float:
    """The median CPU time; the first run is for the caches."""
    work()
    seconds = []
    for _ in range(times):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds) * 1000


def _require_close(average: npt.NDArray[np.float64], wanted: npt.NDArray[np.float32], error: float) -> None:
    if float(np.abs(average - wanted).max()) > error:
        raise RuntimeError("what is measured does not give the right average")
