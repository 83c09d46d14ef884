"""The keys of the record are followed, and survive a record that does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from ops import keys
from ops.errors import StoreUnavailable
from ops.settings import Settings
from ops.store import Store
from server.app import create_app
from server.auth import Keys
from server.errors import Unauthorized
from server.keyring import Keyring


def admitted(known: Keys, secret: str) -> bool:
    try:
        known.identify(httpx.Headers({"x-api-key": secret}))  # type: ignore[arg-type]
    except Unauthorized:
        return False
    return True


async def test_keys_stay_good_while_the_record_does_not_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Keys([])
    keyring = Keyring(store, known, poll_s=0.01)
    new, late = (keys.make(name, created_by="t") for name in ("ide", "late"))
    store.add_key(new.key)
    await keyring.read()
    answers = store.api_keys
    gone = 0

    def silent() -> None:
        nonlocal gone
        gone += 1
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "api_keys", silent)
    following = asyncio.create_task(keyring.run())
    while gone < 3:
        await asyncio.sleep(0.01)
    assert admitted(known, new.secret)
    monkeypatch.setattr(store, "api_keys", answers)
    store.add_key(late.key)
    while not admitted(known, late.secret):
        await asyncio.sleep(0.01)
    store.revoke_key("ide")
    while admitted(known, new.secret):
        await asyncio.sleep(0.01)
    keyring.stop()
    await following


def test_building_the_application_writes_nothing(tmp_path: Path) -> None:
    create_app(Settings(data_dir=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
