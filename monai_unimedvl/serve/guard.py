# SPDX-License-Identifier: Apache-2.0
"""Who comes in: the key, the host and origin, the size and pace of a request. Plain ASGI, before any parsing.

Without a key only this machine is served, and only under its own names: a page from elsewhere that a browser
here has open can neither ask (its Origin differs) nor rename itself to this machine (its Host differs).
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from monai_unimedvl.serve.limits import Limits, Refused
from monai_unimedvl.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
READING = ("GET", "HEAD", "OPTIONS")
FRONT = ("/", "/panel", "/panel/")  # lead to the page


class Guard:
    """Lets through what may come in, and counts it.

    Args:
        key: that every request must bring as `Authorization: Bearer KEY`; None asks for none.
        hosts: names under which the server may be addressed; None lets all.
        open_paths: what needs no key, by its beginning: nothing there is about anybody.
        uploads: paths whose requests may be as large as `limits.upload`.
    """

    def __init__(
        self, app: App, *, limits: Limits, metrics: Metrics, key: str | None = None,
        hosts: Collection[str] | None = None, open_paths: Collection[str] = (), uploads: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.app, self.limits, self.metrics = app, limits, metrics
        self.key, self.hosts = key, hosts
        self.open_paths, self.uploads = tuple(open_paths), frozenset(uploads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, visit = time.monotonic(), _Visit(self, scope, receive, send)
        try:
            visit.check()
            await self.app(scope, visit.receive, visit.send)
        except Refused as refused:
            await visit.refuse(refused)
        finally:
            route = getattr(scope.get("route"), "path", None) or "none"
            self.metrics.requests.labels(route, str(visit.status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)
        return None


class _Visit:
    """One request on its way in, and its answer on its way out."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope = guard, scope
        self._receive, self._send = receive, send
        self.status, self.size = 0, 0
        self.refused: Refused | None = None
        self.whole = self.dropped = False
        self.deadline = time.monotonic() + guard.limits.upload_seconds
        path = scope["path"]
        self.limit = guard.limits.upload if path in guard.uploads else guard.limits.body
        self.headers = {
            name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]
        }

    def check(self) -> None:
        """Everything that can be known before the body.

        Raises:
            Refused: it may not come in.
        """
        guard, host = self.guard, self.headers.get("host", "")
        if guard.hosts is not None and _name(host) not in guard.hosts:
            raise Refused(
                f"Host {host[:80]!r} is not served, expected one of {', '.join(sorted(guard.hosts))}: use "
                "that name, or start the server with --allow-host."
            )
        origin = self.headers.get("origin")
        if origin is not None and self.scope["method"] not in READING and urlsplit(origin).netloc != host:
            raise Refused("This request comes from a page of another site, which may not ask.", status=403)
        path = self.scope["path"]
        if guard.key is not None and not (path in FRONT or path.startswith(guard.open_paths)):
            scheme, _, given = self.headers.get("authorization", "").partition(" ")
            right = secrets.compare_digest(given.strip().encode(), guard.key.encode())
            if scheme.lower() != "bearer" or not right:
                raise Refused(
                    "A key is asked for and none came, or a wrong one: send `Authorization: Bearer KEY`.",
                    status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece of the request, as long as it is neither too large nor too slow."""
        if self.whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self.deadline - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError as error:
            self.refused = Refused(
                f"The request did not come in whole within {self.guard.limits.upload_seconds:g} seconds.",
                status=408,
            )
            raise self.refused from error
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.whole = not message.get("more_body", False)
            if self.size > self.limit:
                self.refused = self._too_large()
                raise self.refused
        return message

    async def send(self, message: Message) -> None:
        """The answer, with headers that keep browsers careful; or the refusal in its place."""
        if self.refused is not None:  # whatever the app made of it
            refused, self.refused = self.refused, None
            await self.refuse(refused)
            self.dropped = True
        if self.dropped:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message.get("headers", [])}
            extra = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in there]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        self.status = refused.status
        body = json.dumps(refused.body).encode()
        headers = {
            "content-type": "application/json", "content-length": str(len(body)),
            "connection": "close", **HEADERS, **refused.headers,
        }  # fmt: skip
        encoded = [(name.lower().encode("latin1"), value.encode("latin1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": refused.status, "headers": encoded})
        await self._send({"type": "http.response.body", "body": body})

    def _too_large(self) -> Refused:
        return Refused(
            f"The request is larger than {self.limit:,} bytes: send fewer or smaller images.", status=413
        )


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
