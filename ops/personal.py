"""Personal data in text, told from what code is made of by its shape or by check digits.

E-mail addresses; telephone numbers (libphonenumber's rules, as `phonenumbers` has them); payment
cards (Luhn) and IBANs; national numbers with check digits (`python-stdnum`); public IP addresses.
Code is full of digits, so a number counts only where it is written as people write such numbers,
or where a word before it says what it is. What stands for nobody is left alone: `example.com` and
its like (RFC 2606), numbers and networks that are reserved for documentation.

Not found: names, addresses, dates of birth, and whatever else only its meaning gives away.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from functools import partial

import phonenumbers
from stdnum import iban, luhn
from stdnum.be import nn as be_nn
from stdnum.br import cpf
from stdnum.ca import sin as ca_sin
from stdnum.ch import ssn as ch_ssn
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr
from stdnum.dk import cpr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.nl import bsn
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.us import ssn

from ops.records import PersonalKind
from ops.spans import Span, windows

_MAIL = re.compile(
    r"(?<![\w.+%\-/])[A-Za-z0-9_][\w.+%\-]{0,63}@(?P<domain>(?:[A-Za-z0-9\-]{1,63}\.){1,8}"
    r"(?P<top>[A-Za-z]{2,24}))(?![\w@(\[])(?!\.[\w(])",
    re.ASCII,
)
_AT = re.compile("@")
_NAME_CHARS, _DOMAIN_CHARS = 65, 260
_NOBODYS_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.\w+)?|test|invalid|localhost|local)$", re.I)
_NOBODYS_NAME = frozenset(("git", "noreply", "no-reply"))
_TOPS = frozenset(
    (
        *("com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "dev"),
        *("app", "cloud", "online", "email", "mail", "site", "tech", "store", "shop", "blog"),
        *("xyz", "club", "agency", "berlin", "london", "paris", "tokyo", "asia", "jobs", "mobi"),
    )
)
"""Endings beside those of countries, which are of two letters: `a@b.mean` is a product."""

_DIGITS = re.compile(r"\d[\d ().\-/+]{5,}")
"""Where a number may begin that is long enough to be somebody's."""
_BEFORE, _AFTER = 24, 24

_IP4 = re.compile(r"(?<![\w.\-+])(?:\d{1,3}\.){3}\d{1,3}(?![\w\-+]|\.\d)")
_IP6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])", re.ASCII
)
_IP6_PART = re.compile(r":(?::|(?:[0-9A-Fa-f]{1,4}:){3})", re.ASCII)
"""No address is without one: either groups are left out, or there are eight."""
_IP6_AROUND = 40
_VERSION = re.compile(r"(?:\bv|version|release|[=<>~!]=)\W{0,4}$", re.I)
_RESOLVERS = frozenset(("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"))

_CARD = re.compile(
    r"(?<![\w.\-])(?:\d{13,19}|\d{4}([ \-])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"
    r"|\d{4}([ \-])\d{6}\2\d{5})(?![\w\-]|\.\d)"
)
_BRAND = re.compile(r"4|5[1-5]|2[2-7]|3[47]|36|3[089]|6(?:011|5|4[4-9]|2)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")

_ABROAD = re.compile(r"(?<![\w.+])\+\(?[1-9]\d?[\d ().\-/]{6,24}\d")
_AT_HOME = re.compile(
    r"(?<![\w.\-+])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.\-])[2-9]\d{2}[.\-]\d{4}(?![\w\-]|\.\d)"
)
_CALL = re.compile(
    r"(?:phone|mobile|telefon|\btel|\bfax|\bcell|whatsapp|\bcall)\b[^\n,;]{0,24}$", re.I
)
_CALLING = ("phone", "mobile", "telefon", "tel", "fax", "cell", "whatsapp", "call")

Check = Callable[[str], bool]
_WRITTEN: tuple[tuple[str, Check], ...] = (
    (r"\d{3}-\d{2}-\d{4}", ssn.is_valid),
    (r"\d{3}\.\d{3}\.\d{3}-\d{2}", cpf.is_valid),
    (r"\d{8}-?[A-Z]", dni.is_valid),
    (r"[XYZ]-?\d{7}-?[A-Z]", nie.is_valid),
    (r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}", nir.is_valid),
    (r"[1-9]\d{5}(?:19|20)\d{9}[\dX]", ric.is_valid),
    (r"\d{6}[\-+]\d{4}", personnummer.is_valid),
    (r"\d{6}[\-+A]\d{3}[0-9A-Y]", hetu.is_valid),
    (r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", be_nn.is_valid),
    (r"756\.\d{4}\.\d{4}\.\d{2}", ch_ssn.is_valid),
    (r"\d{6}-[1-8]\d{6}", rrn.is_valid),
    (r"\d{6}/\d{4}", rc.is_valid),
)
"""National numbers that are known by how they are written: the shape, and its check digits."""
_NAMED: tuple[tuple[str, str, Check], ...] = (
    (r"steuer-?id|idnr|steueridentifikation|tax id", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", idnr.is_valid),
    (r"bsn|burgerservice", r"\d{9}", bsn.is_valid),
    (r"pesel", r"\d{11}", pesel.is_valid),
    (r"cpr", r"\d{6}-?\d{4}", cpr.is_valid),
    (r"f(?:ø|oe?)dselsnummer", r"\d{6} ?\d{5}", fodselsnummer.is_valid),
    (r"aadhaar|aadhar", r"\d{4}[ \-]?\d{4}[ \-]?\d{4}", aadhaar.is_valid),
    (r"nhs", r"\d{3}[ \-]?\d{3}[ \-]?\d{4}", nhs.is_valid),
    (r"social insurance", r"\d{3}[ \-]?\d{3}[ \-]?\d{3}", ca_sin.is_valid),
    (r"cnp|cod numeric", r"\d{13}", cnp.is_valid),
    (r"ssn|social security", r"\d{3}[ \-]?\d{2}[ \-]?\d{4}", ssn.is_valid),
    (r"cpf", r"\d{11}", cpf.is_valid),
)
"""National numbers that are mere digits: the words before, the shape, and the check digits."""
_NAMING = (
    *("steuer", "idnr", "tax id", "bsn", "burgerservice", "pesel", "cpr", "dselsnummer", "aadha"),
    *("nhs", "social", "cnp", "cod numeric", "ssn", "cpf"),
)
"""Pieces of those words: where none is there, the words are not looked for."""
_EDGES = r"(?<![\w.\-]){}(?![\w\-]|\.\d)"
_BY_SHAPE = tuple((re.compile(_EDGES.format(f"(?:{p})")), check) for p, check in _WRITTEN)
_BY_NAME = tuple(
    (re.compile(rf"\b(?:{words})\b", re.I), re.compile(_EDGES.format(f"(?:{p})")), check)
    for words, p, check in _NAMED
)
_ANY_SHAPE = re.compile(_EDGES.format("(?:" + "|".join(p for p, _ in _WRITTEN) + ")"))
_FISCALE = re.compile(r"\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)")


def find_personal(
    text: str, kinds: Collection[PersonalKind], *, phone_region: str | None = None
) -> Iterator[Span]:
    """Yield the personal data in a text; pieces may overlap.

    Args:
        text: what to look into.
        kinds: which kinds to look for.
        phone_region: two letters of the country whose telephone numbers may be written without
            `+`; None: numbers of all countries with `+` only.
    """
    if PersonalKind.EMAIL in kinds:
        yield from _mails(text)
    if PersonalKind.IP_ADDRESS in kinds and ":" in text:
        yield from _ip6(text)
    if not _DIGIT.search(text):
        return
    drawn = outline(text)
    if PersonalKind.NATIONAL_NUMBER in kinds and "00A00A000A" in drawn:
        yield from _fiscal_codes(text)
    finders = _finders(text, drawn, kinds, phone_region)
    for start, end in windows(text, _DIGITS, _BEFORE, _AFTER) if finders else ():
        for find in finders:
            yield from find(text, start, end)


_OUTLINE = str.maketrans("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0" * 10 + "A" * 26)
_DIGIT = re.compile(r"\d")
_FOREIGN_DIGIT = re.compile(r"[^\x00-\x7f\D]")


def outline(text: str) -> str:
    """Return a text with a 0 for each digit and an A for each capital of ASCII.

    Tables are full of digits, and to look for each shape at every one of them takes long. A shape
    whose outline is not in that of the text is not in the text.
    """
    drawn = text.translate(_OUTLINE)
    return drawn if text.isascii() else _FOREIGN_DIGIT.sub("0", drawn)


Finder = Callable[[str, int, int], Iterator[Span]]


def _finders(
    text: str, drawn: str, kinds: Collection[PersonalKind], phone_region: str | None
) -> list[Finder]:
    """What to look for where there are digits: what has a part there, and words that it needs."""
    found = [
        find
        for kind, find, parts in _IN_DIGITS
        if kind in kinds and any(part in drawn for part in parts)
    ]
    lowered = text.lower()
    if PersonalKind.NATIONAL_NUMBER in kinds:
        if _national not in found and _FRENCH.search(drawn):
            found.append(_national)
        if any(word in lowered for word in _NAMING):
            found.append(_named)
    calling = PersonalKind.PHONE in kinds and any(word in lowered for word in _CALLING)
    if calling and phone_region is not None:
        found.append(partial(_called, region=phone_region))
    return found


def _mails(text: str) -> Iterator[Span]:
    for start, end in windows(text, _AT, _NAME_CHARS, _DOMAIN_CHARS):
        for match in _MAIL.finditer(text, start, end):
            if _is_mail(match):
                yield (*match.span(), PersonalKind.EMAIL)


def _is_mail(match: re.Match[str]) -> bool:
    """Whether it is somebody's: no documentation's, and no product of two matrices."""
    name, _, domain = match[0].lower().partition("@")
    if name in _NOBODYS_NAME or _NOBODYS_DOMAIN.search(domain):
        return False
    top = match["top"].lower()
    return len(top) == 2 or top in _TOPS


def _ip4(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IP4.finditer(text, start, end):
        if _is_public(match[0]) and not _VERSION.search(
            text[max(0, match.start() - 12) : match.start()]
        ):
            yield (*match.span(), PersonalKind.IP_ADDRESS)


def _ip6(text: str) -> Iterator[Span]:
    for start, end in windows(text, _IP6_PART, _IP6_AROUND, _IP6_AROUND):
        for match in _IP6.finditer(text, start, end):
            if _is_public(match[0]) and not match[0].lower().startswith("ffff"):  # no netmask
                yield (*match.span(), PersonalKind.IP_ADDRESS)


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global and address not in _RESOLVERS
    except ValueError:
        return False


def _cards(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _CARD.finditer(text, start, end):
        digits = re.sub(r"\D", "", match[0])
        if _BRAND.match(digits) and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield (*match.span(), PersonalKind.PAYMENT_CARD)


def _ibans(text: str, start: int, end: int) -> Iterator[Span]:
    for match in _IBAN.finditer(text, start, end):
        if iban.is_valid(match[0]):
            yield (*match.span(), PersonalKind.IBAN)


def _fiscal_codes(text: str) -> Iterator[Span]:
    """Italy's number, which is of letters mostly."""
    for match in _FISCALE.finditer(text):
        start = match.start() - 6
        if start < 0 or text[start - 1 : start].isalnum():
            continue
        if codicefiscale.is_valid(text[start : match.end()]):
            yield start, match.end(), PersonalKind.NATIONAL_NUMBER


def _national(text: str, start: int, end: int) -> Iterator[Span]:
    if _ANY_SHAPE.search(text, start, end):  # looking for each would take longer
        for pattern, check in _BY_SHAPE:
            for match in pattern.finditer(text, start, end):
                if check(match[0]):
                    yield (*match.span(), PersonalKind.NATIONAL_NUMBER)


def _named(text: str, start: int, end: int) -> Iterator[Span]:
    for words, pattern, check in _BY_NAME:
        for match in pattern.finditer(text, start, end):
            line = text[max(0, match.start() - 48) : match.start()].rpartition("\n")[2]
            if words.search(line) and check(match[0]):
                yield (*match.span(), PersonalKind.NATIONAL_NUMBER)


def _abroad(text: str, start: int, end: int) -> Iterator[Span]:
    """Telephone numbers with `+`."""
    for match in _ABROAD.finditer(text, start, end):
        yield from _valid(text, *match.span(), None)


def _at_home(text: str, start: int, end: int) -> Iterator[Span]:
    """Telephone numbers as North America writes them."""
    for match in _AT_HOME.finditer(text, start, end):
        yield from _valid(text, *match.span(), "US")


_IN_DIGITS: tuple[tuple[PersonalKind, Finder, tuple[str, ...]], ...] = (
    (
        PersonalKind.IP_ADDRESS,
        _ip4,
        tuple(f".{'0' * two}.{'0' * three}." for two in (1, 2, 3) for three in (1, 2, 3)),
    ),
    (
        PersonalKind.PAYMENT_CARD,
        _cards,
        (
            "0" * 13,
            *(f"0000{mark}0000{mark}0000{mark}0000" for mark in " -"),
            *(f"0000{mark}000000{mark}00000" for mark in " -"),
        ),
    ),
    (PersonalKind.IBAN, _ibans, ("AA00",)),
    (
        PersonalKind.NATIONAL_NUMBER,
        _national,
        (
            *("000-00-0000", "000.000.000-00", "0000000A", "0000000-A", "0" * 17, "000000-000"),
            *("000000+000", "000000A000", "00.00.00-000.00", "000.0000.0000.00", "000000/0000"),
        ),
    ),
    (PersonalKind.PHONE, _abroad, ("+0", "+(0")),
    (
        PersonalKind.PHONE,
        _at_home,
        (
            *(f"({'0' * 3}){gap}000{mark}0000" for gap in ("", " ") for mark in "-."),
            *(f"000{mark}000{last}0000" for mark in "-." for last in "-."),
        ),
    ),
)
"""What is looked for where there are digits, and outlines of which each holds one."""
_FRENCH = re.compile(r"0 ?00 ?00 ?0[0A] ?000 ?000 ?00")
"""The outline of the one national number that is written with gaps or without."""


def _called(text: str, start: int, end: int, region: str) -> Iterator[Span]:
    """Telephone numbers after a word that says so."""
    for match in _DIGITS.finditer(text, start, end):
        if _CALL.search(text, max(0, match.start() - 40), match.start()):
            yield from _valid(text, *match.span(), region)


def _valid(text: str, start: int, end: int, region: str | None) -> Iterator[Span]:
    for found in phonenumbers.PhoneNumberMatcher(text[start:end], region):
        yield start + found.start, start + found.end, PersonalKind.PHONE
