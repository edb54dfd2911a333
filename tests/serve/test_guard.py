# SPDX-License-Identifier: Apache-2.0
"""Who is let in: keys, hosts, origins, sizes, pace; and what every answer tells a browser."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import openai
import pytest
from serve_support import NAME, png, running, service_of, user

from monai_unimedvl.serve import application

KEY = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked(network, tokenizer) -> Iterator[str]:
    """A server with a key, for any host, that reads 4000 bytes within a second."""
    service = service_of(network, tokenizer, body=4000, upload=6000, upload_seconds=0.5)
    with running(application(service, key=KEY, hosts=None, samples={})) as url:
        yield url


def test_the_key_opens_and_nothing_else_does(locked):
    asked = {"model": NAME, "messages": [user("axial")], "max_tokens": 2}
    with pytest.raises(openai.AuthenticationError, match="key is asked for"):
        openai.OpenAI(base_url=f"{locked}/v1", api_key="wrong").chat.completions.create(**asked)
    right = openai.OpenAI(base_url=f"{locked}/v1", api_key=KEY)
    assert right.chat.completions.create(**asked).choices
    for path in ("/v1/models", "/metrics", "/openapi.json", "/panel/info", "/panel/results/x", "/none"):
        assert httpx.get(f"{locked}{path}").status_code == 401, path
        assert httpx.get(f"{locked}{path}", headers={"Authorization": f"Basic {KEY}"}).status_code == 401
    for path in ("/health", "/panel/page/", "/panel/page/panel.js", "/panel"):
        assert httpx.get(f"{locked}{path}", follow_redirects=True).status_code == 200, path


def test_without_a_key_only_this_machine_is_served_under_its_own_names(url):
    assert httpx.get(f"{url}/v1/models").status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:80"):
        answer = httpx.get(f"{url}/v1/models", headers={"Host": host})
        assert answer.status_code == 400 and "is not served" in answer.json()["error"]["message"]


def test_a_page_of_another_site_cannot_ask(url):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.post(f"{url}/panel/draw", json={"prompt": "axial"}, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    same = httpx.post(f"{url}/panel/draw", json={}, headers={"Origin": url})
    assert same.status_code == 400  # let in, and read


def test_an_application_open_to_all_hosts_needs_a_key(service):
    with pytest.raises(ValueError, match="open to everybody"):
        application(service, hosts=None)


def test_requests_that_are_too_large_are_refused_told_or_not(locked):
    headers = {"Authorization": f"Bearer {KEY}"}
    told = httpx.post(f"{locked}/v1/images/generations", content=b"x" * 5000, headers=headers)
    assert told.status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    untold = httpx.post(f"{locked}/v1/images/generations", content=pieces(), headers=headers)
    assert untold.status_code == 413 and "4,000 bytes" in untold.json()["error"]["message"]
    assert httpx.post(f"{locked}/panel/draw", content=b"x" * 5000, headers=headers).status_code == 413
    for size, status in ((5000, 400), (7000, 413)):  # the panel reads more, and finds no image in it
        files = {"files": ("a.png", b"x" * size)}
        assert httpx.post(f"{locked}/panel/images", files=files, headers=headers).status_code == status


def test_a_request_that_does_not_come_in_whole_is_given_up(locked):
    host, port = locked.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode()
        )
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_every_answer_keeps_browsers_careful_and_the_page_loads_nothing_from_elsewhere(url):
    answer = httpx.get(f"{url}/panel/page/")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe-inline" not in policy and "http" not in policy
    assert "http" not in answer.text.replace("http-equiv", "")
    assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]
    assert httpx.get(f"{url}/", follow_redirects=True).text == answer.text
    assert httpx.get(f"{url}/docs").status_code == 404  # would load scripts from elsewhere


@pytest.mark.parametrize(
    "path", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "panel.js/../../app.py", "x" * 3000]
)
def test_the_page_gives_no_file_but_its_own(url, path):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:  # clients would tidy the path up
        line.sendall(f"GET /panel/page/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 404")


def test_an_edit_with_a_field_that_is_not_known_is_refused(url):
    files = {"image": ("a.png", png(), "image/png")}
    for extra in ({"mask": "x"}, {"Seed": "3"}):
        answer = httpx.post(f"{url}/v1/images/edits", data={"prompt": "axial", **extra}, files=files)
        assert answer.status_code == 400 and "is not known" in answer.json()["error"]["message"]
