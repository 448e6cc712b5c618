"""Lists of words: what people are called, where they live, how they are reached; and lists that only look like it."""

from __future__ import annotations

import numpy as np
import pytest

from quorate_client.synthetic.identifying.check_digits import kvnr
from quorate_client.synthetic.identifying.sign import Sign
from quorate_client.synthetic.identifying.words import said_by_words

KVNRS = [number for number in (f"A{n:09}" for n in range(123456000, 123456100)) if kvnr(number)]


def said(words: list[str], uses: int = 20) -> Sign | None:
    return said_by_words(words, np.repeat(np.arange(len(words)), uses))


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["a.b@example.org", "none", "unknown"], "e-mail"),
        (["+49 30 123456", "0151-12345678", "(030) 12 34 56", "unknown"], "telephone number"),
        (["555-234-1234", "(555) 234-1235", "1-555-234-1236"], "telephone number"),
        (["1960-02-29", "29.02.1960", "1/12/1999", "2001-01-01", "12.1.1980"], "date of birth"),
        (["123-45-6789", "123-45-6780", "unknown"], "insurance number"),
        (KVNRS, "insurance number"),
        (["Hauptstraße 5", "Bahnhofstr. 12a", "Am Weg 3", "Lindenallee 7"], "address"),
        (["12, rue de la Paix", "rue Pasteur 4", "3 boulevard Voltaire"], "address"),
        (["10 Downing Street", "221B Baker", "4 Privet Drive", "12 Park Rd."], "address"),
        (["Calle Mayor 3", "Via Roma 12", "Kerkstraat 4"], "address"),
        (["SW1A 1AA", "M1 1AE", "EC1A 1BB"], "address"),
        (["1011 AB", "3512 JK", "9712 CP"], "address"),
        (["10115 Berlin", "D-80331 München", "50667 Köln"], "address"),
        ([f"{10115 + 71 * n}" for n in range(15)], "address"),
        (["Müller, Hans", "Schmidt, K.", "O'Neil, Pat", "Weber-Kohl, Eva", "Yılmaz, Ayşe"], "name"),
        (["Hans Müller", "Sabine Kohl", "Peter Weber", "Dr. Eva Lang"], "name"),
        (["Jean Dupont", "Marie Curie", "José García", "Ana Ruiz"], "name"),
    ],
)
def test_words_about_people_are_known(words: list[str], kind: str) -> None:
    sign = said(words)
    assert sign is not None
    assert sign.kind == kind
    assert not any(word in sign.reason for word in words)


@pytest.mark.parametrize(
    "words",
    [
        ["I", "II", "III", "IV"],
        ["under 1000", "1000-5000", "5000-100000", "0-1000000"],
        ["0-1000", "01-02", "02-03", "03-04", "2000-3000"],
        ["5-470.10", "5-470.11", "8-930.2", "1-632.0"],
        ["0002-1433-80", "0004-0051-61", "00093-7146-56"],
        ["2160-0", "718-7", "4548-4"],
        ["I21.4", "E11.9", "J44.0", "C50.1", "Z38.0"],
        ["A10BA02", "C09AA05", "N02BE01"],
        ["99213", "99214", "93000"],
        ["New York", "San Francisco", "Los Angeles"],
        ["St. Anna", "St. Josef Klinik", "Sankt Maria", "Santa Ana", "Charité"],
        ["Diabetes mellitus", "Hypertension", "Neoplasms, breast"],
        ["Neoplasms, breast", "Pneumonia", "Fracture", "Anaemia", "Sepsis"],
        ["Fraktur, Femur", "Fraktur, Humerus", "Ruptur, Milz", "Ulkus, Magen", "Ileus, Dünndarm"],
        ["Atemweg", "Luftweg", "Harnweg"],
        ["Platz 1", "Platz 2", "Platz 3"],
        ["via oral", "via intravenosa", "rue"],
        ["strongly agree with what was said in the last visit", "neither agree nor disagree with what was said"],
        ["2019", "2020", "2021", "2022", "2023"],
        ["1.5.2", "2.0.1", "3.11.7", "4.1.1", "2.2.2"],
    ],
)
def test_other_words_are_left_alone(words: list[str]) -> None:
    assert said(words) is None


def test_long_texts_are_free_text_only_where_hardly_two_records_share_one() -> None:
    texts = [f"patient reports pain in the left knee since day {n} of the trip" for n in range(60)]
    written = said(texts, uses=1)
    assert written is not None
    assert written.kind == "free text"
    assert said(texts, uses=20) is None
    assert said(texts[:10], uses=1) is None, "ten records say nothing about how words are used"
