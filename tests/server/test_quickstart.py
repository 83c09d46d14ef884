"""What the quick start tells users to do, done."""

from __future__ import annotations

import io
import json
import subprocess
from contextlib import redirect_stdout
from typing import Any

from tests.ops.test_pages import URL, blocks
from tests.server.conftest import Running


def test_the_snippets_of_the_quick_start_run(server: Running) -> None:
    [curl] = [body for body in blocks("quickstart.md", "sh") if body.startswith("curl")]
    done = subprocess.run(
        ["bash", "-c", curl.replace(URL, server.url).replace("curl ", "curl -sS --noproxy '*' ")],
        capture_output=True,
        text=True,
        check=True,
    )
    answer: Any = json.loads(done.stdout)
    assert "verified" in answer["choices"][0]["verification"]
    [python] = blocks("quickstart.md", "python")
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(python.replace(URL, server.url), "quickstart.md", "exec"), {})
    assert printed.getvalue().strip()
    last = server.store.interactions(limit=1)[0]
    assert [row.metric for row in server.store.feedback(last.id)] == ["accepted"]
