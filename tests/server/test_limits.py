"""Bodies: too long, not JSON, not text."""

from __future__ import annotations

import socket

from tests.server.conftest import Running

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/feedback"]


def test_an_oversize_body_is_refused_before_it_is_read(server: Running) -> None:
    for path in PATHS:
        _ask_too_much(server, path)


def _ask_too_much(server: Running, path: str) -> None:
    limit = server.settings.server.max_body_bytes
    with socket.create_connection(("127.0.0.1", server.settings.server.port)) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {limit + 1}\r\n\r\n"
        client.sendall(head.encode())  # and not one byte of the body
        client.settimeout(5)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"request_too_large" in answer


def test_a_body_of_unknown_length_is_read_up_to_the_limit(server: Running) -> None:
    part = b"x" * (1 << 20)

    def endless() -> object:
        for _ in range(6):
            yield part

    response = server.http.post("/v1/chat/completions", content=endless())  # type: ignore[arg-type]
    assert response.status_code == 413


NOT_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b'"x"',
    b"null",
    b'{"model":"code","messages":[{"role":"user","content":"\xff"}]}',
    b'{"model":"code","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"code","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
    b'{"a":' * 100_000,
    b'{"model":"code","seed":' + b"9" * 5000 + b"}",
    b'{"model":"code","messages":[{"role":"user","content":"a\\u0000b"}]}',
]


def test_what_is_not_a_json_object_is_a_400(server: Running) -> None:
    for path in PATHS:
        for body in NOT_OBJECTS:
            response = server.http.post(path, content=body)
            assert response.status_code == 400, body[:60]
            assert response.json()["error"]["code"] == "invalid_json"


def test_an_escaped_backslash_is_no_nul(server: Running) -> None:
    body = b'{"model":"code","messages":[{"role":"user","content":"a\\\\u0000b"}]}'
    assert server.http.post("/v1/chat/completions", content=body).status_code == 200
    assert server.store.interactions()[0].messages[0]["content"] == "a\\u0000b"


def test_escaped_pairs_of_surrogates_are_text(server: Running) -> None:
    body = b'{"model":"code","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}'
    response = server.http.post("/v1/chat/completions", content=body)
    assert response.status_code == 200
    row = server.store.interactions()[0]
    assert row.messages[0]["content"] == "\N{GRINNING FACE}"
