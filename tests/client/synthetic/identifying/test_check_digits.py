"""Numbers with check digits, by their published examples."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.identifying import check_digits
from quorate_client.synthetic.identifying.check_digits import checked_numbers


@pytest.mark.parametrize(
    ("passes", "valid"),
    [
        (check_digits.kvnr, "A123456780"),
        (check_digits.nhs_number, "9434765919"),
        (check_digits.bsn, "111222333"),
        (check_digits.nir, "255081416802538"),
        (check_digits.iban, "DE89370400440532013000"),
        (check_digits.iban, "GB29NWBK60161331926819"),
        (check_digits.ahv, "7569217076985"),
        (check_digits.dni, "12345678Z"),
        (check_digits.dni, "X1234567L"),
        (check_digits.luhn, "4539578763621486"),
    ],
)
def test_a_valid_number_passes_and_no_other_digit_does(passes: check_digits.Passes, valid: str) -> None:
    assert passes(valid)
    at = max(place for place, letter in enumerate(valid) if letter.isdigit())
    others = [f"{valid[:at]}{digit}{valid[at + 1 :]}" for digit in "0123456789" if digit != valid[at]]
    assert not any(map(passes, others))
    assert not passes(valid[:-2])
    assert not passes("")


def test_random_numbers_pass_no_check_even_where_one_in_ten_does() -> None:
    drawn = np.random.default_rng(4)
    for digits in (8, 9, 10, 13, 15, 16):
        for count in (3, 30, 300):
            texts = [str(number) for number in drawn.integers(10 ** (digits - 1), 10**digits, count)]
            assert checked_numbers(texts) is None


def test_few_values_are_not_enough_for_a_check_that_one_in_ten_passes() -> None:
    cards = [number for number in map(str, range(4539578763621000, 4539578763621200)) if check_digits.luhn(number)]
    assert checked_numbers(cards[:5]) is None
    found = checked_numbers(cards)
    assert found is not None
    assert found.kind == "record number"


def test_a_number_is_known_with_blanks_and_typing_errors() -> None:
    numbers = [str(n) for n in range(9434765000, 9434766000) if check_digits.nhs_number(str(n))][:40]
    written = [f"{n[:3]} {n[3:6]} {n[6:]}" for n in numbers[:-2]] + ["unknown", "943 476 5910"]
    found = checked_numbers(written)
    assert found is not None
    assert found.kind == "insurance number"
