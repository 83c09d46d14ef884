"""Logs: JSON lines for machines, one readable line for a terminal.

Every line carries `action`, and `request_id` or `cycle_id` where there is one: pass them in
`extra`. Nothing here decides what is logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record with all its extra fields."""
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Time, level, message, then the extra fields as `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record for a person."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extra = " ".join(f"{key}={value}" for key, value in _extra(record).items())
        line = f"{at} {record.levelname.lower():<7} {record.getMessage()} {extra}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def configure(style: Literal["auto", "json", "text"], level: str = "info") -> None:
    """Send all logs from this level on to standard error in the given style."""
    handler = logging.StreamHandler(sys.stderr)
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "alembic", "apscheduler", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
