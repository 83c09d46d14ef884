"""The store is the sum of its parts; what it does is tested in `tests/contracts/test_store.py`."""

from __future__ import annotations

from itertools import combinations

from ops.store import Store
from ops.tables.base import Database

PARTS = Store.__bases__


def names(part: type) -> set[str]:
    """What a part defines itself; what every class has is left out."""
    return set(vars(part)) - set(vars(type("Empty", (), {})))


def test_no_two_parts_define_the_same() -> None:
    twice = {
        (one.__name__, other.__name__): names(one) & names(other)
        for one, other in combinations((Database, *PARTS), 2)
    }
    assert {pair: both for pair, both in twice.items() if both} == {}


def test_each_part_stands_on_the_database_alone() -> None:
    assert {part.__bases__ for part in PARTS} == {(Database,)}
    assert names(Store) == set()
