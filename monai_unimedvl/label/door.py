# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's web application behind a key, and with errors that say what to do.

MONAI Label's own sign-in is broken in 0.8.5 (every token is refused, since its call of PyJWT names no
algorithm); the key is one shared secret, sent as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from monai_unimedvl.label.guard import protect

ORIGINS = "UNIMEDVL_LABEL_ORIGINS"  # JSON: web pages of these origins may ask; by default none but our own
VARIABLE = "UNIMEDVL_LABEL_KEY_SHA256"  # the key itself is in no environment and in no log

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Door:
    """Lets in requests that have the key, before anything of them is looked at.

    Args:
        inside: the application.
        digest: sha256 of the key in hex; None lets everybody in.
    """

    def __init__(self, inside: Any, digest: str | None) -> None:
        self.inside, self.digest = inside, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if self.digest and scope["type"] != "lifespan" and not self._knows(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await _refuse(send)
            return
        await self.inside(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = {key.decode("latin1").lower(): value for key, value in scope.get("headers", ())}
        scheme, _, token = given.get("authorization", b"").partition(b" ")
        keys = [given.get("x-api-key", b""), token if scheme.lower() == b"bearer" else b""]
        hashes = [hashlib.sha256(key.strip()).hexdigest() for key in keys if key.strip()]
        return any([hmac.compare_digest(one, self.digest or "") for one in hashes])


async def _refuse(send: Send) -> None:
    said = {"detail": "no valid key came, expected the header X-API-Key or Authorization: Bearer: send it."}
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def build() -> Door:
    """MONAI Label's application with our errors, behind the key of the environment."""
    protect()
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from monailabel.app import app, origins
    from monailabel.interfaces.exception import MONAILabelException

    def mend(_: Request, error: Exception) -> JSONResponse:
        said = getattr(error, "msg", None) or str(error)
        return JSONResponse({"detail": " ".join(str(said).split())}, status_code=400)

    # before the first request; MONAI Label lets all in
    origins[:] = json.loads(os.environ.get(ORIGINS, "[]"))
    app.add_exception_handler(ValueError, mend)
    app.add_exception_handler(MONAILabelException, mend)
    return Door(app, os.environ.get(VARIABLE))
