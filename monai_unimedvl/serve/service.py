# SPDX-License-Identifier: Apache-2.0
"""What all endpoints share: the model, its worker, the limits, and how one waits for a result.

Whoever stops waiting (client gone, time over) frees the place of what was asked for.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.evaluation import asking as usual
from monai_unimedvl.inferers import QueueFull, Token
from monai_unimedvl.inferers import Request as Asked
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.serve.limits import Limits, Refused
from monai_unimedvl.serve.metrics import Metrics
from monai_unimedvl.serve.worker import Closed, Drawing, Manner, Worker
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.choosing import knows_only_squares

T = TypeVar("T")

DRAWING, EDITING = (Manner(plan.steps, plan.guidance) for plan in (usual.DRAWING, usual.EDITING))


class Service:
    """A model that is served.

    Args:
        name: what clients call it.
        digest: sha256 of its weights.
        manner: how images are drawn from words, and from an image, where a request says nothing.
    """

    def __init__(
        self, network: UniMedVL, tokenizer: Tokenizer, *, name: str, digest: str,
        limits: Limits | None = None, drawing: Manner = DRAWING, editing: Manner = EDITING,
    ) -> None:  # fmt: skip
        self.network, self.tokenizer, self.name, self.digest = network, tokenizer, name, digest
        self.limits, self.drawing, self.editing = limits or Limits(), drawing, editing
        self.square = knows_only_squares(network)
        self.created = int(time.time())
        self.metrics = Metrics()
        self.worker = Worker(
            network, tokenizer, running=self.limits.running, waiting=self.limits.waiting
        )  # fmt: skip
        self.on_close: list[Callable[[], object]] = []
        self.metrics.watch(self.worker.load)
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="unimedvl-read")

    @property
    def fingerprint(self) -> str:
        """Which weights answered."""
        return f"unimedvl-{self.digest[:12]}"

    def provenance(self) -> dict[str, Any]:
        """What every answer says of itself."""
        return {
            "synthetic": True, "notice": provenance.NOTICE, "software": provenance.SOFTWARE,
            "weights": self.digest,
        }  # fmt: skip

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served.

        Raises:
            Refused: it is not.
        """
        if name is not None and name != self.name:
            raise Refused(
                f"Model {name[:80]!r} is not served here, expected {self.name!r}: change it.",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    async def listen(self, prompt: Prompt, **options: Any) -> AsyncGenerator[Token]:
        """The tokens of an answer as they come; who stops listening frees the place.

        Raises:
            Refused: it does not fit, or too many wait.
        """
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[Token] = asyncio.Queue()

        def tell(token: Token) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, token)

        asking = self._threads.submit(self.worker.ask, prompt, tell, **options)
        try:
            request = await asyncio.wrap_future(asking)
        except (QueueFull, ValueError, Closed) as error:
            raise refusal(error) from error
        except asyncio.CancelledError:
            asking.add_done_callback(self._let_go)
            raise
        self.metrics.words.labels("prompt").inc(request.prompt_tokens)
        try:
            while True:
                token = await tokens.get()
                self.metrics.words.labels("answer").inc(token.id is not None)
                if token.stop == "error":
                    self.metrics.failures.inc()
                    raise Refused("The model failed on this request: see the server's log.", status=500)
                yield token
                if token.stop is not None:
                    return
        finally:
            self.worker.cancel(request)

    async def draw(self, prompts: Sequence[Prompt], manner: Manner, seed: int) -> list[Tensor]:
        """An image (3, H, W) in [0, 1] for each prompt, with the seeds `seed`, `seed` + 1 ...

        Raises:
            Refused: it does not fit, or too many wait.
        """
        asked: list[Drawing] = []
        try:
            for i, prompt in enumerate(prompts):
                asked.append(self.worker.draw(prompt, manner, (seed + i) % 2**63))
            images = [await asyncio.wrap_future(one.future) for one in asked]
        except (QueueFull, ValueError, Closed) as error:
            raise refusal(error) from error
        finally:
            for one in asked:
                one.abandon()
        self.metrics.images.inc(len(images))
        return images

    def png(self, image: Tensor, facts: Facts) -> bytes:
        """An image as the bytes of a marked PNG."""
        with tempfile.TemporaryDirectory(prefix="unimedvl-") as folder:
            return provenance.save_image(image, Path(folder) / "image.png", facts).read_bytes()

    async def in_thread(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """A call that takes time, off the loop; what users did wrong becomes `Refused`.

        Raises:
            Refused: a ValueError, a full queue, an ended worker.
        """
        try:
            return await asyncio.wrap_future(self._threads.submit(call, *arguments, **options))
        except (QueueFull, ValueError, Closed) as error:
            raise refusal(error) from error

    def close(self) -> None:
        """End the worker, and whatever else wants to end with it."""
        self.worker.close()
        for close in self.on_close:
            close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _let_go(self, asking: Future[Asked]) -> None:
        """What was asked for on behalf of somebody who has gone."""
        if not asking.cancelled() and asking.exception() is None:
            self.worker.cancel(asking.result())


def refusal(error: Exception) -> Refused:
    """How an error is told: a ValueError (400), a full queue (429), an ended worker (503)."""
    said = " ".join(str(error).split())
    if isinstance(error, QueueFull):
        return Refused(said, status=429, code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, Closed):
        return Refused(said, status=503, headers={"Retry-After": "5"})
    return Refused(said)


async def while_there(request: Request, work: Any, seconds: float) -> Any:
    """The result of `work`, as long as its client waits for it and time is left; else it is cancelled.

    Raises:
        Refused: the time is over (504), or nobody is there to read why (499).
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            task.cancel()
        gone.cancel()
    if task in done:
        return task.result()
    await asyncio.gather(task, return_exceptions=True)  # its places are free before anybody is told
    if gone in done:
        raise Refused("The client has gone.", status=499)
    raise Refused(
        f"No answer within {seconds:g} seconds: ask for less, or come again when there is less to do.",
        status=504, code="timeout",
    )  # fmt: skip


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
