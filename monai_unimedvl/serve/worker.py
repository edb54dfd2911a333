# SPDX-License-Identifier: Apache-2.0
"""The one thread that runs the network: words by the engine, drawings in batches between them.

Requests come from any thread; what waits is bounded, and what nobody waits for any more is dropped. A word
of every running answer is said between two steps of a drawing, so that neither waits for the other's end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Engine, ImageInferer, QueueFull, Request, Token
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

TOGETHER = 8  # drawings of the same settings that are made in one pack


class Manner(NamedTuple):
    """How an image is drawn: network evaluations, weights of guidance, (H, W) in pixels or None."""

    steps: int
    text: float = 1.0
    image: float = 1.0
    size: tuple[int, int] | None = None


@dataclass(eq=False)
class Drawing:
    """An image on its way; `future` gives it, (3, H, W) in [0, 1]. `abandoned`: nobody waits for it."""

    prompt: Prompt
    manner: Manner
    seed: int
    future: Future[Tensor] = field(default_factory=Future)
    abandoned: bool = False

    def abandon(self) -> None:
        """Let it go, whether it waits or is being drawn."""
        self.abandoned = True
        self.future.cancel()


class Closed(RuntimeError):
    """The worker has ended and takes nothing more."""


class _Abandoned(Exception):
    """Nobody waits for any drawing of this batch."""


class Worker:
    """Runs the network for everybody who asks.

    Args:
        running: answers that are made side by side.
        waiting: answers that may wait for a place, and drawings likewise; more are refused.
    """

    def __init__(
        self, network: UniMedVL, tokenizer: Tokenizer, *, running: int = 8, waiting: int = 64
    ) -> None:
        self.network, self.tokenizer, self.limit = network, tokenizer, waiting
        self.engine = Engine(network, tokenizer, max_running=running, max_waiting=waiting)
        self._listeners: dict[Request, Callable[[Token], None]] = {}
        self._unheard: dict[Request, list[Token]] = {}  # said before `ask` could put its listener there
        self._hearing = threading.Lock()
        self._drawings: deque[Drawing] = deque()
        self._drawn: list[Drawing] = []
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="unimedvl-worker", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive() and not self._closed

    def load(self) -> dict[str, int]:
        """How many answers and drawings wait and run."""
        return {
            "answers_waiting": self.engine.waiting,
            "answers_running": self.engine.running,
            "drawings_waiting": len(self._drawings),
            "drawings_running": len(self._drawn),
        }

    def ask(self, prompt: Prompt, listener: Callable[[Token], None], **options: Any) -> Request:
        """Queue a prompt; each token of its answer is given to `listener`, on the worker's thread.

        Args:
            options: of `Engine.submit`.

        Raises:
            ValueError: as `Engine.submit`.
            QueueFull: too many wait already.
            Closed: the worker has ended.
        """
        self._open()
        request = self.engine.submit(prompt, **options)
        with self._hearing:
            for token in self._unheard.pop(request, ()):
                listener(token)
            if not request.done:
                self._listeners[request] = listener
        with self._news:
            self._news.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """Let an answer go; its place is free with the next word of the others."""
        if not request.done:
            self.engine.cancel(request)
            with self._news:
                self._news.notify_all()

    def draw(self, prompt: Prompt, manner: Manner, seed: int = 0) -> Drawing:
        """Queue an image; `Drawing.future` gives it, and `Drawing.abandon` lets it go.

        Raises:
            QueueFull: too many wait already.
            Closed: the worker has ended.
        """
        self._open()
        with self._news:
            if len(self._drawings) >= self.limit:
                raise QueueFull(
                    f"{len(self._drawings)} drawings wait already, at most as many may: come later."
                )
            drawing = Drawing(prompt, manner, seed)
            self._drawings.append(drawing)
            self._news.notify_all()
        return drawing

    def close(self, timeout: float = 10.0) -> None:
        """End the thread; who still waits is told."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._thread.join(timeout)

    def _open(self) -> None:
        if not self.alive:
            raise Closed("The worker has ended and takes no more requests: start the server again.")

    def _run(self) -> None:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._closed or self._drawings or not self.engine.idle)
                    if self._closed:
                        return
                self._speak()
                if batch := self._next_drawings():
                    self._draw(batch)
        finally:
            self._closed = True
            for drawing in self._drawings:
                drawing.future.cancel()
            for request, listener in list(self._listeners.items()):
                listener(Token(request, None, 0.0, "", "error"))

    def _speak(self) -> None:
        """One word of every running answer, given to whom it concerns."""
        if self.engine.idle:
            return
        for token in self.engine.step():
            with self._hearing:
                listener = self._listeners.get(token.request)
                if listener is None:
                    self._unheard.setdefault(token.request, []).append(token)
                elif token.stop is not None:
                    del self._listeners[token.request]
            try:
                if listener is not None:
                    listener(token)
            except Exception:  # a listener whose loop has ended must not end the thread
                _log.warning("an answer could not be delivered: its listener failed")
                self.engine.cancel(token.request)
            if token.stop == "error":
                _log.error("an answer failed: %s", token.request.error)

    def _next_drawings(self) -> list[Drawing]:
        """The first that waits and those that are drawn like it."""
        with self._news:
            batch: list[Drawing] = []
            for drawing in list(self._drawings):
                if len(batch) < TOGETHER and (not batch or drawing.manner == batch[0].manner):
                    self._drawings.remove(drawing)
                    if drawing.future.set_running_or_notify_cancel():
                        batch.append(drawing)
            return batch

    def _draw(self, batch: Sequence[Drawing]) -> None:
        self._drawn = list(batch)
        try:
            images = self._images(batch)
        except _Abandoned:
            for drawing in batch:
                drawing.future.set_exception(Closed("The drawing was given up: ask again."))
            return
        except Exception as error:  # of one of them, or of all: each alone is told its own
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for drawing in batch:
                self._draw([drawing])
            return
        finally:
            self._drawn = []
        for drawing, image in zip(batch, images, strict=True):
            drawing.future.set_result(image)

    def _images(self, batch: Sequence[Drawing]) -> list[Tensor]:
        manner = batch[0].manner
        infer = ImageInferer(
            self.tokenizer, size=manner.size, steps=manner.steps, seed=[one.seed for one in batch],
            guidance=Guidance(text=manner.text, image=manner.image),
        )  # fmt: skip
        with self._words_between(batch):
            return infer([one.prompt for one in batch], self.network)

    @contextmanager
    def _words_between(self, batch: Sequence[Drawing]) -> Iterator[None]:
        """After each evaluation of the network for a drawing, a word of every running answer."""
        speaking = False

        def speak(*_: Any) -> None:
            nonlocal speaking
            if speaking:  # this evaluation was one of ours
                return
            if self._closed or all(one.abandoned for one in batch):
                raise _Abandoned
            speaking = True
            try:
                self._speak()
            finally:
                speaking = False

        hook = self.network.register_forward_hook(speak)
        try:
            yield
        finally:
            hook.remove()
