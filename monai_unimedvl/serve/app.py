# SPDX-License-Identifier: Apache-2.0
"""The web application: routes, errors in one form, and the guard around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from monai_unimedvl import __version__
from monai_unimedvl.serve import chat, drawings, panel
from monai_unimedvl.serve.guard import FRONT, Guard
from monai_unimedvl.serve.limits import Refused
from monai_unimedvl.serve.schema import Error, Health, Model, Models
from monai_unimedvl.serve.service import Service

_log = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health", "/panel/page/")  # without a key: they say nothing about anybody
ABOUT = """Answers questions about medical images, draws and edits them. Research software, not for diagnosis.
Whatever comes out is synthetic and marked as such."""


def application(
    service: Service, *, key: str | None = None, hosts: Collection[str] | None = LOOPBACK,
    samples: Mapping[str, tuple[Path, str | None]] | None = None,
) -> FastAPI:  # fmt: skip
    """The application that serves a model.

    Args:
        key: that every request must bring as `Authorization: Bearer KEY`; None asks for none.
        hosts: names under which it may be addressed; None lets all (only with a key).
        samples: as in `panel.router`.

    Raises:
        ValueError: all hosts and no key.
    """
    if hosts is None and key is None:
        raise ValueError(
            "The server would be open to everybody who reaches it: give a key, or serve this machine only."
        )

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="UniMedVL", version=__version__, description=ABOUT, lifespan=life,
        redirect_slashes=False, docs_url=None, redoc_url=None,  # their pages load scripts from elsewhere
        dependencies=[Depends(HTTPBearer(auto_error=False))] if key else [],
    )  # fmt: skip
    app.include_router(chat.router(service))
    app.include_router(drawings.router(service))
    app.include_router(panel.router(service, samples))
    _add_rest(app, service)
    _add_errors(app)
    _describe(app)
    app.add_middleware(
        Guard, limits=service.limits, metrics=service.metrics, key=key, hosts=hosts, open_paths=OPEN,
        uploads=["/panel/images"],
    )  # fmt: skip
    return app


def _add_rest(app: FastAPI, service: Service) -> None:
    """Models, health, metrics."""

    def model() -> dict[str, Any]:
        return {"id": service.name, "created": service.created, "weights": service.digest}

    refusals: dict[int | str, dict[str, Any]] = {code: {"model": Error} for code in (400, 401, 403, 404, 405)}

    @app.get("/v1/models", response_model=Models, responses=refusals, tags=["OpenAI"])
    async def models() -> Any:
        """What is served."""
        return {"data": [model()]}

    @app.get("/v1/models/{name}", response_model=Model, responses=refusals, tags=["OpenAI"])
    async def one(name: str) -> Any:
        """A model by its name."""
        service.check_model(name)
        return model()

    @app.get("/health", response_model=Health, responses={503: {"model": Health}}, tags=["operation"])
    async def health(response: Response) -> Any:
        """Whether the network still answers; needs no key."""
        alive = service.worker.alive
        response.status_code = 200 if alive else 503
        return {"status": "ok" if alive else "failed", "model": service.name, **service.worker.load()}

    @app.get("/metrics", response_class=Response, responses=refusals, tags=["operation"])
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def front(request: Request) -> Response:
        return RedirectResponse("page/" if request.url.path.endswith("panel/") else "panel/page/")

    for path in FRONT:
        app.get(path, include_in_schema=False)(front)


def _describe(app: FastAPI) -> None:
    """An OpenAPI description without 422, which is never answered: what does not fit gets 400."""
    described = app.openapi()
    for methods in described["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(unused, None)


def _add_errors(app: FastAPI) -> None:
    """All errors in OpenAI's form, one sentence each; of the request they name fields, nothing else."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # the innermost of a union's
        where = ".".join(str(part) for part in first["loc"][1:])[:120] or "the body"
        where = where.encode("utf8", "replace").decode()
        reason = str(first["msg"]).encode("utf8", "replace").decode()[:300]
        if first["type"] == "json_invalid":  # its place is a number of characters
            where, reason = "the body", f"no JSON, which breaks at character {where}"
        elif where == "the body":
            reason = "expected a JSON object, sent with Content-Type: application/json"
        return await refused(_, Refused(f"{where}: {reason}.", param=where, code=str(first["type"])))

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> Response:
        said = {404: "There is nothing at this address.", 405: "This address has no such method."}
        message = said.get(error.status_code, str(error.detail))
        return await refused(_, Refused(message, status=error.status_code, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        _log.error("a request failed: %s", type(error).__name__)  # its words may hold a patient's
        return await refused(_, Refused("The server failed on this request: see its log.", status=500))
