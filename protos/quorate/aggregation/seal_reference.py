"""Microsoft SEAL as the reference for ``ring``: the one module that touches TenSEAL.

The words of ``ring`` are SEAL's words, so that what was reviewed is an ordinary CKKS ciphertext and not a likeness of
one. A site calls ``self_test`` before its first secure sum (``secagg.self_test``) and
takes part in none where the two differ.
Nothing else of a round passes through SEAL: it is slower here, and its parsers must never see foreign bytes (TenSEAL
reads beyond the heap when sizes are forged). What is loaded below was written a moment before, by this process, in
SEAL's uncompressed format.

sealapi loads from paths only. The path is that of a file in memory, or, where there are none, of a private temporary
file; what passes through it is one-time words of a test, never the key of a round.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal.sealapi as sealapi

from quorate.aggregation import ntt, ring, rlwe
from quorate.aggregation.ring import DEGREE, MODULUS, Integers, Polynomials
from quorate.aggregation.rlwe import NOISE_BOUND
from quorate.process.randomness import SystemRandomness

_HEADER = struct.Struct("<HBBBBHQ")  # magic, size of the header, major, minor, compression, reserved, size of the whole
_MAGIC, _VERSION, _UNCOMPRESSED = 0xA15E, (4, 3), 0


class SelfTestError(RuntimeError):
    """This machine's arithmetic and SEAL's differ, or this is not the SEAL that we know. Nothing may be encrypted."""


class Reference:
    """SEAL with our parameters: CKKS, N = 2048, one prime of 52 bits and no special prime.

    Takes and gives numpy arrays; one polynomial is a row (DEGREE,), in the NTT domain unless said otherwise.

    Raises:
        SelfTestError: SEAL chose another modulus, or refuses the parameters.
    """

    def __init__(self) -> None:
        parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(DEGREE, [52]))
        self._context = sealapi.SEALContext(parameters, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self._context.parameters_set():
            raise SelfTestError("SEAL refuses the parameters of secure aggregation")
        self._parms_id = self._context.first_parms_id()
        moduli = [m.value() for m in self._context.first_context_data().parms().coeff_modulus()]
        if moduli != [MODULUS] or self._context.key_parms_id() != self._parms_id:
            raise SelfTestError(f"SEAL chose the moduli {moduli} and not {MODULUS}")
        self._evaluator = sealapi.Evaluator(self._context)

    def to_ntt(self, polynomial: Polynomials) -> Polynomials:
        """SEAL's transform of coefficients."""
        ciphertext = self._ciphertext(polynomial, polynomial, in_ntt=False)
        self._evaluator.transform_to_ntt_inplace(ciphertext)
        return _words(ciphertext, 0)

    def from_ntt(self, polynomial: Polynomials) -> Polynomials:
        """SEAL's transform to coefficients."""
        ciphertext = self._ciphertext(polynomial, polynomial, in_ntt=True)
        self._evaluator.transform_from_ntt_inplace(ciphertext)
        return _words(ciphertext, 0)

    def add(self, a: Polynomials, b: Polynomials, public: Polynomials) -> Polynomials:
        """c0 of the sum of the ciphertexts (a, public) and (b, public), as SEAL's evaluator adds them."""
        total = self._ciphertext(a, public)
        self._evaluator.add_inplace(total, self._ciphertext(b, public))
        return _words(total, 0)

    def decrypt(self, c0: Polynomials, public: Polynomials, key: Polynomials) -> Integers:
        """The coefficients, centred, of what SEAL's decryptor makes of (c0, c1 = public) under the key s = -key."""
        plaintext = sealapi.Plaintext()
        sealapi.Decryptor(self._context, self._secret_key(key)).decrypt(self._ciphertext(c0, public), plaintext)
        return ring.centred(self.from_ntt(_words(plaintext, 0)))

    def encrypt(self, coefficients: Integers, key: Polynomials) -> tuple[Polynomials, Polynomials]:
        """SEAL's own symmetric ciphertext (c0, c1) of coefficients under s = -key, with SEAL's noise and c1."""
        ciphertext = sealapi.Ciphertext(self._context)
        encryptor = sealapi.Encryptor(self._context, self._secret_key(key))
        encryptor.encrypt_symmetric(self._plaintext(ntt.to_ntt(coefficients[None, :])[0]), ciphertext)
        return _words(ciphertext, 0), _words(ciphertext, DEGREE)

    def encode(self, coefficients: Integers) -> Polynomials:
        """What SEAL's CKKSEncoder makes of the slots that stand for integer coefficients, at scale 1.

        Exact up to 2^48 in size; float64 ends soon after, at 2^50 a coefficient may be off by one.
        """
        halves = coefficients[: DEGREE // 2] + 1j * coefficients[DEGREE // 2 :]
        values = np.fft.ifft(halves * _ZETA) * (DEGREE // 2)
        slots = np.where(_CONJUGATE, values[_VALUE_OF_SLOT].conj(), values[_VALUE_OF_SLOT])
        plaintext = sealapi.Plaintext()
        sealapi.CKKSEncoder(self._context).encode(slots.tolist(), 1.0, plaintext)
        return _words(plaintext, 0)

    def decode(self, polynomial: Polynomials) -> npt.NDArray[np.float64]:
        """The coefficients that the slots of SEAL's CKKSEncoder stand for: the mirror image of ``encode``."""
        slots = np.array(sealapi.CKKSEncoder(self._context).decode_complex(self._plaintext(polynomial)))
        values = np.empty(DEGREE // 2, dtype=np.complex128)
        values[_VALUE_OF_SLOT] = np.where(_CONJUGATE, slots.conj(), slots)
        halves = np.fft.fft(values) / (DEGREE // 2) * _ZETA.conj()
        return np.concatenate([halves.real, halves.imag])

    def _ciphertext(self, c0: Polynomials, c1: Polynomials, *, in_ntt: bool = True) -> Any:
        # parms_id, form, size, degree, primes, scale, correction factor (of BGV), words
        fields = struct.pack("<4Q?3QdQ", *self._parms_id, in_ntt, 2, DEGREE, 1, 1.0, 1)
        return self._load(sealapi.Ciphertext(self._context), _object(fields + _array(np.concatenate([c0, c1]))))

    def _plaintext(self, words: Polynomials) -> Any:
        return self._load(sealapi.Plaintext(), self._plain_object(words))

    def _secret_key(self, key: Polynomials) -> Any:
        negated = np.zeros(DEGREE, dtype=np.uint64)
        ring.subtract(negated, key)
        return self._load(sealapi.SecretKey(), self._plain_object(negated))

    def _plain_object(self, words: Polynomials) -> bytes:
        return _object(struct.pack("<4QQd", *self._parms_id, DEGREE, 1.0) + _array(words))

    def _load(self, target: Any, content: bytes) -> Any:
        """SEAL checks the parameters' id, and that every word is below the modulus."""
        with _path_of(content) as path:
            try:
                target.load(self._context, path)
            except (RuntimeError, ValueError) as error:
                raise SelfTestError("SEAL does not read the format that it is known to write") from error
        return target


def self_test() -> None:
    """Compare ``ring`` with SEAL on fresh random words; some 30 ms.

    Both transforms word for word; a sum of two of our ciphertexts, added by SEAL, word for word; SEAL's decryption of
    it with the sum of the keys, which must be the sum of the messages and of noise that is not too large; and our
    decryption of a ciphertext that SEAL made.

    Raises:
        SelfTestError: something differs.
    """
    seal, randomness = Reference(), SystemRandomness()
    word = rlwe.uniform(randomness, DEGREE)
    if not np.array_equal(ntt.to_ntt(word[None])[0], seal.to_ntt(word)):
        raise SelfTestError("our transform differs from SEAL's")
    if not np.array_equal(ntt.from_ntt(word[None])[0], seal.from_ntt(word)):
        raise SelfTestError("our inverse transform differs from SEAL's")

    seed = randomness.draw(rlwe.SEED_BYTES)
    public = rlwe.expand(seed, 0, 1)[0]
    messages = [ring.centred(rlwe.uniform(randomness, DEGREE)[None]) >> 3 for _ in range(2)]
    keys = [rlwe.uniform(randomness, DEGREE) for _ in range(2)]
    sealed = [rlwe.encrypt(m, t, seed, 0, randomness) for m, t in zip(messages, keys, strict=True)]
    by_seal = seal.add(sealed[0][0], sealed[1][0], public)
    ring.add(sealed[0], sealed[1])
    if not np.array_equal(sealed[0][0], by_seal):
        raise SelfTestError("our addition differs from SEAL's")
    ring.add(keys[0], keys[1])
    opened = seal.decrypt(by_seal, public, keys[0])
    if not np.array_equal(opened, rlwe.open_sum(sealed[0], keys[0], seed, 0)[0]):
        raise SelfTestError("our decryption differs from SEAL's")
    if int(np.abs(opened - messages[0][0] - messages[1][0]).max()) > 2 * NOISE_BOUND:
        raise SelfTestError("SEAL does not open the sum of our ciphertexts")

    c0, c1 = seal.encrypt(messages[0][0], keys[1])
    ring.subtract(c0, ring.multiply(c1, keys[1]))
    if int(np.abs(ring.centred(ntt.from_ntt(c0[None])[0]) - messages[0][0]).max()) > NOISE_BOUND:
        raise SelfTestError("we do not open what SEAL encrypts")


def _words(holder: Any, start: int) -> Polynomials:
    """A polynomial of a ciphertext or plaintext, word by word: the binding has no faster way."""
    return np.array([holder[i] for i in range(start, start + DEGREE)], dtype=np.uint64)


def _object(content: bytes) -> bytes:
    """Content behind the header that SEAL puts before everything."""
    major, minor = _VERSION
    return _HEADER.pack(_MAGIC, _HEADER.size, major, minor, _UNCOMPRESSED, 0, _HEADER.size + len(content)) + content


def _array(words: Polynomials) -> bytes:
    return _object(struct.pack("<Q", words.size) + words.astype("<u8").tobytes())


@contextmanager
def _path_of(content: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("quorate-seal", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def _slot_order() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each slot of SEAL the value at zeta^(4t + 1) that it holds, and whether it holds its conjugate.

    Slot j belongs to the exponent 3^j modulo 2N. One that is 3 modulo 4 is the conjugate of 2N minus it.
    """
    exponents = np.array([pow(3, j, 2 * DEGREE) for j in range(DEGREE // 2)])
    conjugate = exponents % 4 == 3
    return np.where(conjugate, 2 * DEGREE - exponents, exponents) // 4, conjugate


_ZETA = np.exp(1j * np.pi / DEGREE * np.arange(DEGREE // 2))
_VALUE_OF_SLOT, _CONJUGATE = _slot_order()
