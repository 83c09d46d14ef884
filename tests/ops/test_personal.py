"""Which personal data is found, and what of code only looks like it."""

from __future__ import annotations

import re
import time

import hypothesis
import pytest
from hypothesis import strategies

from ops import personal
from ops.personal import find_personal
from ops.records import PersonalKind

KINDS = frozenset(PersonalKind)


def _found(text: str, region: str | None = "US") -> dict[str, str]:
    spans = find_personal(text, KINDS, phone_region=region)
    return {text[start:end]: str(kind) for start, end, kind in spans}


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        ("email", "ankit326@gmail.com"),
        ("email", "Jane.Doe+tag@mail.firm.co.uk"),
        ("phone", "+49 170 1234567"),
        ("phone", "+1 (415) 200-2345"),
        ("phone", "415-200-2345"),
        ("phone", "(415) 200-2345"),
        ("payment_card", "4111 1111 1111 1111"),
        ("payment_card", "4111111111111111"),
        ("payment_card", "3782 822463 10005"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("iban", "GB82WEST12345698765432"),
        ("national_number", "536-90-4399"),
        ("national_number", "390.533.447-05"),
        ("national_number", "54362315K"),
        ("national_number", "RSSMRA85T10A562S"),
        ("national_number", "11010519491231002X"),
        ("national_number", "880320-0016"),
        ("national_number", "756.9217.0769.85"),
        ("ip_address", "91.198.174.192"),
        ("ip_address", "2620:0:862:ed1a::1"),
    ],
)
def test_personal_data_is_found_wherever_it_stands(kind: str, piece: str) -> None:
    for text in (piece, f"x = '{piece}'", f"Ask {piece}.", f"({piece}),", "1, 2\n" * 999 + piece):
        assert _found(text).get(piece) == kind, text


@pytest.mark.parametrize(
    ("text", "piece", "kind"),
    [
        ("PESEL: 44051401359", "44051401359", "national_number"),
        ("his BSN is 111222333", "111222333", "national_number"),
        ("Aadhaar 2341 2341 2346", "2341 2341 2346", "national_number"),
        ("phone: 4152002345", "4152002345", "phone"),
    ],
)
def test_mere_digits_are_found_after_a_word_that_says_what_they_are(
    text: str, piece: str, kind: str
) -> None:
    assert _found(text).get(piece) == kind
    assert piece not in _found(piece)


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, a@b.example.org, root@localhost, git@github.com:owner/repo",
        "y = W@x.sum() + A@B.T - a@b.mean",
        "@app.route('/x')\n@pytest.fixture",
        "x = [1234567890, 9876543210, 4000000000000]",
        "1234567812345678 and 4111111111111112",
        "seed = 20240131; pi = 3.141592653589793; e = 4.111111111111111",
        "2024-01-31 10:00:00, 555-0100, 123-45-678",
        "127.0.0.1 10.0.0.1 192.168.1.1 192.0.2.7 8.8.8.8 256.1.1.1 1.2.3",
        "pandas==1.5.3.1, version 12.4.1.2, v91.198.174.192",
        "00:1A:2B:3C:4D:5E and fe80::1 and 10:30:00 and a[1:2:3] and ffff:ffff:ffff:ffff::",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "30.62646944,-88.06797028 Mobile,AL",
        "d41d8cd98f00b204e9800998ecf8427e 12345678A",
        "0x4111111111111111 -4111111111111111",
        "assert phone(415) == 200",
    ],
)
def test_code_and_nobodys_data_hold_none(text: str) -> None:
    assert _found(text) == {}


def test_only_the_kinds_wanted_and_the_region_given_are_looked_for() -> None:
    text = "tel 030 901820, ann@gmail.com, RSSMRA85T10A562S, 2620:0:862:ed1a::1"
    assert set(_found(text, "DE")) >= {"030 901820"}
    assert not {"030 901820", "030"} & set(_found(text, None))
    assert list(find_personal(text, {PersonalKind.PHONE})) == []
    assert list(find_personal("+49 170 1234567", ())) == []


@pytest.mark.parametrize("piece", ["1 ", "1.", "+1", "a@", "4111 ", "::1", "1" * 40, "tel 1"])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (50_000 // len(piece))
    began = time.process_time()
    list(find_personal(text, KINDS, phone_region="US"))
    assert time.process_time() - began < 2


SHAPES = [
    *((re.compile(pattern), personal._national) for pattern, _ in personal._WRITTEN),
    (personal._CARD, personal._cards),
    (personal._IBAN, personal._ibans),
    (personal._IP4, personal._ip4),
    (personal._ABROAD, personal._abroad),
    (personal._AT_HOME, personal._at_home),
]


@pytest.mark.parametrize(("shape", "find"), SHAPES, ids=lambda given: getattr(given, "pattern", ""))
def test_whatever_has_a_shape_is_looked_for_by_its_outline(
    shape: re.Pattern[str], find: personal.Finder
) -> None:
    @hypothesis.given(strategies.from_regex(shape, fullmatch=True))
    @hypothesis.settings(max_examples=25, database=None)
    def looked_for(text: str) -> None:
        for longer in (text, f"é 7,{text}; 12"):
            drawn = personal.outline(longer)
            assert find in personal._finders(longer, drawn, KINDS, None)

    looked_for()


def test_digits_and_capitals_of_a_text_are_drawn_alike() -> None:
    assert personal.outline("Ab12 \u0663\uff17\n") == "Ab00 00\n"


def test_nothing_is_looked_for_in_a_table() -> None:
    table = "2024-01-02 10:20:30,123456,0.25,C10,9.50\n" * 100
    assert personal._finders(table, personal.outline(table), KINDS, "US") == []
