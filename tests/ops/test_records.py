from __future__ import annotations

import uuid

from ops.records import new_id, now


def test_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(uuid.UUID(i).version == 7 for i in ids)
    assert all(uuid.UUID(i).variant == uuid.RFC_4122 for i in ids)
    stamp = uuid.UUID(ids[-1]).int >> 80
    assert abs(stamp / 1000 - now().timestamp()) < 5
