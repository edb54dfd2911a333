# SPDX-License-Identifier: Apache-2.0
"""/v1/images/generations and /v1/images/edits: words, or a picture and words, to marked PNGs."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from torch import Tensor

from monai_unimedvl.provenance import Facts
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.serve.chat import REFUSALS
from monai_unimedvl.serve.limits import Refused
from monai_unimedvl.serve.messages import pictures_of
from monai_unimedvl.serve.schema import Generation, Images
from monai_unimedvl.serve.service import Service, while_there
from monai_unimedvl.serve.worker import Manner
from monai_unimedvl.transforms.geometry import put_back


def router(service: Service) -> APIRouter:
    """The two routes."""
    routes = APIRouter()

    @routes.post("/v1/images/generations", response_model=Images, responses=REFUSALS, tags=["OpenAI"])
    async def generate(body: Generation, request: Request) -> Any:
        """Draw images from words. `n` images take the seeds `seed`, `seed` + 1 ..."""
        service.check_model(body.model)
        manner = manner_of(service, service.drawing, body.steps, body.guidance, body.size)
        prompts: list[Prompt] = [[body.prompt]] * _count(service, body.n)
        work = service.draw(prompts, manner, body.seed or 0)
        images = await while_there(request, work, service.limits.seconds)
        return _told(service, images, body.prompt, body.seed or 0, manner, "draw")

    @routes.post("/v1/images/edits", response_model=Images, responses=REFUSALS, tags=["OpenAI"])
    async def edit(
        request: Request,
        image: Annotated[UploadFile, File(description="PNG, JPEG, TIFF, WebP, BMP, GIF or DICOM")],
        prompt: Annotated[str, Form(min_length=1, max_length=20_000)],
        model: Annotated[str | None, Form(min_length=1, max_length=200)] = None,
        n: Annotated[int | None, Form(ge=1, le=8)] = None,
        response_format: Annotated[str | None, Form(pattern="^b64_json$")] = None,
        output_format: Annotated[str | None, Form(pattern="^png$")] = None,
        seed: Annotated[int | None, Form(ge=0, lt=2**63)] = None,
        steps: Annotated[int | None, Form(ge=1, le=200)] = None,
        guidance: Annotated[float | None, Form(ge=1, le=20, allow_inf_nan=False)] = None,
        user: Annotated[str | None, Form(description="not kept, not logged")] = None,
    ) -> Any:
        """Turn an image into another by an instruction; the result has the pixels of the source."""
        service.check_model(model)
        await _only_known(request)
        manner = manner_of(service, service.editing, steps, guidance, None)
        content = await image.read()
        pictures = await service.in_thread(
            pictures_of, content, image.content_type or "image/png", service.limits, service.square, "image"
        )
        picture = pictures[0]
        prompts: list[Prompt] = [[picture.as_tensor(), prompt]] * _count(service, n)
        work = service.draw(prompts, manner, seed or 0)
        drawn = await while_there(request, work, service.limits.seconds)
        whole = [
            put_back(one, picture, until="SquarePixels").clamp(0, 1).as_subclass(Tensor) for one in drawn
        ]
        inputs = [hashlib.sha256(content).hexdigest()]
        return _told(service, whole, prompt, seed or 0, manner, "edit", inputs)

    return routes


def manner_of(
    service: Service, default: Manner, steps: int | None, guidance: float | None, size: str | None
) -> Manner:
    """How an image is drawn: what was asked for, else the default.

    Raises:
        Refused: beyond the limits, or a size that the model does not draw.
    """
    if (steps or 1) > service.limits.steps:
        raise Refused(
            f"steps is {steps}, at most {service.limits.steps} are taken here: lower it.", param="steps"
        )
    pixels = None
    if size not in (None, "auto"):
        assert size is not None
        width, height = map(int, size.split("x"))  # OpenAI's order
        pixels = (height, width)
        stride, largest = (
            service.network.canvas_stride,
            service.network.canvas_stride * service.network.latent_side,
        )
        if any(side % stride or side > largest for side in pixels):
            raise Refused(
                f"size is {size}, expected WIDTHxHEIGHT in multiples of {stride} up to {largest}: change it.",
                param="size",
            )
    text = default.text if guidance is None else guidance
    return Manner(steps or default.steps, text, default.image, pixels)


def _count(service: Service, n: int | None) -> int:
    if (n or 1) > service.limits.choices:
        raise Refused(f"n is {n}, at most {service.limits.choices} are made: lower it.", param="n")
    return n or 1


async def _only_known(request: Request) -> None:
    """A form may hold no field that would be ignored."""
    known = "image prompt model n response_format output_format seed steps guidance user".split()
    fields = [name for name, _ in (await request.form()).multi_items()]
    for name in fields:
        if name not in known or fields.count(name) > 1:
            what = "came twice" if name in known else "is not known"
            raise Refused(
                f"Field {name[:60]!r} {what}, expected {', '.join(known)}, each at most once: leave it out.",
                param=name[:60],
            )


def _told(
    service: Service, images: Sequence[Tensor], prompt: str, seed: int, manner: Manner, task: str,
    inputs: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Marked PNGs in base64."""
    found = []
    for i, image in enumerate(images):
        facts = Facts(
            prompt, (seed + i) % 2**63, service.digest, task, inputs, steps=manner.steps,
            text_guidance=manner.text, image_guidance=manner.image,
        )  # fmt: skip
        content = base64.b64encode(service.png(image, facts)).decode()
        found.append({"b64_json": content, "provenance": facts.manifest()})
    return {"created": int(time.time()), "data": found}
