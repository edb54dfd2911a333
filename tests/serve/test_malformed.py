# SPDX-License-Identifier: Apache-2.0
"""Malformed requests get 4xx and nothing else, and leave the server as it was."""

from __future__ import annotations

import httpx
import pytest
from serve_fuzz import malformed
from serve_support import NAME, running, service_of, user

from monai_unimedvl.serve import application

RAW = [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"model": "tiny", "messages": NaN}', b"[" * 100_000,
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', b'{"\\ud800": 1}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 5000 + b"}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "n": true}',
]  # fmt: skip


@pytest.mark.parametrize("content", RAW, ids=[str(raw[:30]) for raw in RAW])
def test_bytes_that_are_no_request_are_refused(url, content):
    for path in ("/v1/chat/completions", "/v1/images/generations", "/panel/draw"):
        answer = httpx.post(f"{url}{path}", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and set(answer.json()) == {"error"}


def test_what_is_wrong_with_a_body_is_said_in_words(url):
    path, kind = f"{url}/v1/chat/completions", {"Content-Type": "application/json"}
    said = httpx.post(path, content=b'{"model":', headers=kind).json()["error"]["message"]
    assert said == "the body: no JSON, which breaks at character 9."
    said = httpx.post(path, content=b"hello").json()["error"]["message"]
    assert said == "the body: expected a JSON object, sent with Content-Type: application/json."


@pytest.mark.parametrize("path", ["/", "/panel", "/panel/"])
def test_the_page_is_found_from_every_address_that_one_would_type(url, path):
    found = httpx.get(f"{url}{path}", follow_redirects=True)
    assert (found.status_code, found.url.path) == (200, "/panel/page/")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_of_another_kind_is_refused(url, kind):
    answer = httpx.post(f"{url}/v1/chat/completions", content=b"a=1", headers={"Content-Type": kind})
    assert 400 <= answer.status_code < 500 and set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    "paths, count", [(["/panel/draw"], 15), pytest.param(None, 1000, marks=pytest.mark.slow)]
)
def test_requests_that_break_the_description_get_4xx_and_nothing_else(network, tokenizer, paths, count):
    """10,000 of them: tests/benchmarks/serve.py."""
    service = service_of(network, tokenizer)
    app = application(service, samples={})
    described = app.openapi()
    described = {
        **described,
        "paths": {path: described["paths"][path] for path in paths or described["paths"]},
    }
    with running(app) as url:
        got = malformed(described, url, count)
        assert got.odd == []
        assert got.count >= count
        right = {"model": NAME, "messages": [user("axial")], "max_tokens": 3}
        assert httpx.post(f"{url}/v1/chat/completions", json=right).status_code == 200
        assert sum(service.worker.load().values()) == 0


def test_the_description_names_every_refusal(service):
    described = application(service, samples={}).openapi()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            codes = set(operation["responses"])
            assert path in ("/health", "/metrics") or {"400", "401", "404"} <= codes, f"{method} {path}"
            assert "422" not in codes, f"{method} {path} never answers 422"
