from __future__ import annotations

import json
import logging

import pytest

from ops import logs


def _record(**extra: object) -> logging.LogRecord:
    logger = logging.getLogger("t")
    return logger.makeRecord("t", logging.INFO, "f", 1, "hello %s", ("you",), None, extra=extra)


def test_json_lines_hold_every_extra_field() -> None:
    line = json.loads(logs.JsonFormatter().format(_record(action="greet", request_id="r1")))
    assert line["message"] == "hello you"
    assert (line["action"], line["request_id"], line["level"]) == ("greet", "r1", "info")


def test_text_lines_stay_readable() -> None:
    line = logs.TextFormatter().format(_record(action="greet"))
    assert line.endswith("info    hello you action=greet")


def test_auto_is_json_where_nobody_reads(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure("auto")
        logging.getLogger("x").info("hi", extra={"action": "a"})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert json.loads(capsys.readouterr().err)["action"] == "a"
