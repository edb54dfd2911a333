# SPDX-License-Identifier: Apache-2.0
"""Many requests at once: who finishes makes room, who waits comes in, nobody waits for the longest.

A server drives it from one thread, and hands it requests from any::

    engine = Engine(network, tokenizer, max_running=8)

    def drive():                                # in a thread of its own
        while serving:
            if engine.wait(timeout=0.1):        # sleeps while there is nothing to do
                for token in engine.step():     # one word of every running request
                    deliver(token.request, token.piece, token.logprob, token.stop)

    request = engine.submit([image, "Which plane is this?"], max_new_tokens=64)   # any thread
    engine.cancel(request)                                                        # any thread

An answer is the same as alone: it depends on neither its neighbours nor the time it came in.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from monai_unimedvl.inferers.context import Context, check_batch, segments_for
from monai_unimedvl.inferers.inferers import THINK_TO_ANSWER, Answer
from monai_unimedvl.inferers.prefixes import Prefixes, length
from monai_unimedvl.inferers.sampling import Sampling, choose
from monai_unimedvl.networks.decoding import NextWord
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Prompt, Segment, Text
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.segments import ToSegments

FAR = 1 << 62  # tokens that nobody spares


class QueueFull(RuntimeError):
    """Too many requests wait already: come again later (HTTP 429 or 503)."""


class Token(NamedTuple):
    """One step of one request.

    Args:
        id: of the word, or None where a request stops without one ("end", "cancelled", "error").
        logprob: natural log-probability of `id` (with "end", of ending) under the model itself.
        piece: text that became readable with it; "" within a character. All pieces are the answer's text.
        stop: None while it goes on; else "end", "length", "context", "cancelled" or "error".
        alternatives: the likeliest words (id, logprob) at this place, as many as were asked for.
    """

    request: Request
    id: int | None
    logprob: float
    piece: str
    stop: str | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """A prompt on its way; made by `Engine.submit`. Read it from any thread, write nothing.

    Args:
        number: counts from 0 in one engine.
        prompt_tokens: tokens of the prompt, marks included; `shared_tokens` of them were not read anew.
        tokens: the words so far.
        stop_reason: None until it is done; see `Token.stop`.
        error: one sentence, with "error".
        submitted, started, finished: seconds of `time.monotonic()`; None until then. It is started when its
            prompt has been read.
    """

    number: int
    segments: list[Segment]
    sampling: Sampling
    generator: torch.Generator
    alternatives: int
    prompt_tokens: int
    shared_tokens: int = 0
    tokens: list[Token] = field(default_factory=list)
    stop_reason: str | None = None
    error: str | None = None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    finished: float | None = None
    cancelled: bool = False
    unreadable: list[int] = field(default_factory=list)  # words of an unfinished character

    @property
    def done(self) -> bool:
        """Whether its last token has come."""
        return self.stop_reason is not None

    @property
    def answer(self) -> Answer:
        """What was said so far; `stop_reason` is "" while it goes on."""
        said = [token for token in self.tokens if token.id is not None]
        return Answer(
            "".join(token.piece for token in self.tokens),
            tuple(token.id for token in said if token.id is not None),
            tuple(token.logprob for token in said),
            self.stop_reason or "",
        )


class Engine:
    """Answers requests side by side: submit, step, cancel.

    Args:
        tokenizer: of the network.
        to_segments, fit: as in `TextInferer`.
        max_running: requests that are answered at once; each has its own place in the cache.
        max_waiting: requests that may wait for a place; more are refused.
        max_prefill: tokens of prompts that one step reads at most (one prompt always goes), so that those who
            are speaking do not wait long for newcomers.
        share: a prompt that begins like another, present or of a request whose place is still free, is read
            from there on (see `Prefixes`). The network must not change while the engine has it.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(
        self,
        network: UniMedVL,
        tokenizer: Tokenizer,
        *,
        to_segments: ToSegments | None = None,
        fit: Literal["matched", "upstream"] = "matched",
        max_running: int = 8,
        max_waiting: int = 256,
        max_prefill: int = 4096,
        share: bool = True,
    ) -> None:
        for name, value in (
            ("max_running", max_running), ("max_waiting", max_waiting), ("max_prefill", max_prefill),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"Engine got {name}={value}, expected at least 1: raise it.")
        self.network, self.tokenizer = network, tokenizer
        self.to_segments = to_segments or segments_for(network, tokenizer, fit)
        self.max_running, self.max_waiting, self.max_prefill = max_running, max_waiting, max_prefill
        self.context = Context(network, self.to_segments, samples=max_running)
        self.share, self.prefixes = share, Prefixes(self.context)
        self._places: list[Request | None] = [None] * max_running
        self._free = list(range(max_running))  # all places, in the order in which they were left
        self._next: list[int] = [0] * max_running  # the word that each place reads next
        self._next_word = NextWord(network)
        self._waiting: deque[Request] = deque()
        self._numbers = itertools.count()
        self._news = threading.Condition()  # guards `_waiting`

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(request is not None for request in self._places)

    @property
    def waiting(self) -> int:
        """Requests without a place yet."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self.running

    def submit(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        alternatives: int = 0,
        think: bool = False,
    ) -> Request:
        """Queue a prompt or a dialogue; from any thread. Checks and cuts it here, on the caller's time.

        Args:
            prompt: texts and images (3, H, W) in [0, 1], or `Turn`s of these, the user's last.
            max_new_tokens, temperature, top_k, top_p, repetition_penalty: see `Sampling`.
            seed: of what is sampled.
            alternatives: how many likeliest words each token tells.
            think: ask for reasoning first, as in `TextInferer`.

        Raises:
            ValueError: as `TextInferer`; or an image for a network without vision.
            QueueFull: `max_waiting` requests wait already.
        """
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, repetition_penalty)
        (checked,) = check_batch([prompt], "Engine")
        segments = self.to_segments(checked, history=True)
        if think:
            segments = [Text(self.tokenizer.encode(THINK_TO_ANSWER)), *segments]
        if not 0 <= alternatives <= 20:
            raise ValueError(f"alternatives is {alternatives}, expected 0 to 20: change it.")
        tokens = sum(length(segment) for segment in segments)
        room = self.network.decoder.max_context
        if tokens + 3 > room:  # text_start, a word, text_end
            raise ValueError(
                f"The prompt holds {tokens} tokens, expected at most {room - 3} so that an answer fits: "
                "shorten the text, or give fewer or smaller images."
            )
        if self.network.vision is None and any(not isinstance(s, Text) for s in segments):
            raise ValueError(
                "The prompt has an image, but this network no vision encoder: load one that has."
            )
        chance = torch.Generator().manual_seed(seed)
        with self._news:
            if len(self._waiting) >= self.max_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} requests wait already, at most as many may: come later."
                )
            request = Request(next(self._numbers), segments, sampling, chance, alternatives, tokens)
            self._waiting.append(request)
            self._news.notify_all()
        return request

    def cancel(self, request: Request) -> None:
        """Stop a request; from any thread. Its place is free at the next `step`, which says "cancelled"."""
        with self._news:
            request.cancelled = True
            self._news.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether there is something to do; sleeps up to `timeout` seconds for it (None: for ever)."""
        with self._news:
            return self._news.wait_for(lambda: not self.idle, timeout)

    @torch.no_grad()
    def step(self) -> list[Token]:
        """Let in who fits, then one word of every running request. Call it from one thread only.

        A request that fails stops with "error" and its sentence; the others go on.
        """
        tokens = self._drop_cancelled()
        self._admit(tokens)
        active = [s for s, request in enumerate(self._places) if request is not None]
        if active:
            tokens += self._speak(active)
        return tokens

    def run(self, requests: Sequence[Request] | None = None) -> None:
        """Step until the given requests, or all, are done; for scripts without a driving thread."""
        while not (self.idle if requests is None else all(request.done for request in requests)):
            self.step()

    def _drop_cancelled(self) -> list[Token]:
        with self._news:
            gone = [request for request in self._waiting if request.cancelled]
            for request in gone:
                self._waiting.remove(request)
        gone += [request for request in self._places if request is not None and request.cancelled]
        return [self._finish(request, None, 0.0, "cancelled") for request in gone]

    def _admit(self, tokens: list[Token]) -> None:
        """Read the prompts of those who come in, together."""
        free = [s for s in self._free if self._places[s] is None]  # the longest free first
        newcomers: dict[int, Request] = {}
        size = 0
        with self._news:
            while free and self._waiting:
                if newcomers and size + self._waiting[0].prompt_tokens > self.max_prefill:
                    break
                request = self._waiting.popleft()
                place = self._place(request, free)
                free.remove(place)
                self._places[place] = newcomers[place] = request
                self._next[place] = self.context.marks.text_start
                size += request.prompt_tokens
        if not newcomers:
            return
        try:
            if not self.share:
                self.prefixes = Prefixes(self.context, worth=FAR)
            spared = self.prefixes.read({s: request.segments for s, request in newcomers.items()})
        except Exception as error:  # whatever it was, the server goes on and the caller is told
            tokens += [
                self._finish(request, None, 0.0, "error", str(error)) for request in newcomers.values()
            ]
            return
        self._next_word = NextWord(self.network)
        for s, request in newcomers.items():
            request.started, request.shared_tokens = time.monotonic(), spared[s]

    def _place(self, request: Request, free: list[int]) -> int:
        """Where it goes: into the place whose whole past it goes on from, else the longest free."""
        source, count = self.prefixes.alike(request.segments) if self.share else (-1, 0)
        whole = source in free and count == len(self.prefixes.lines[source].keys)
        return source if whole else free[0]

    def _speak(self, active: list[int]) -> list[Token]:
        """One word of each of the places `active`."""
        cache, marks = self.context.cache, self.context.marks
        room = self.network.decoder.max_context
        device = self.network.decoder.embed.weight.device
        ids = torch.tensor([self._next[s] for s in active], device=device)
        speakers = [request for s in active if (request := self._places[s]) is not None]
        try:
            logits = self._next_word(ids, active, cache)  # (B, V)
            chosen = self._choose(logits, speakers)  # (B,)
            logprobs = logits.log_softmax(-1)  # (B, V); logsumexp is slow where scores lie far apart
        except Exception as error:  # as above
            return [self._finish(request, None, 0.0, "error", str(error)) for request in speakers]
        said = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
        tokens = []
        for row, (s, request, id_) in enumerate(zip(active, speakers, chosen.tolist(), strict=True)):
            if said[row] != said[row]:
                wrong = "The network's scores are not numbers (NaN): check its weights and the images."
                tokens.append(self._finish(request, None, 0.0, "error", wrong))
                continue
            best: tuple[tuple[int, float], ...] = ()
            if request.alternatives:
                top = logprobs[row].topk(min(request.alternatives, logprobs.shape[1]))
                best = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            self._next[s] = id_
            if id_ == marks.text_end:
                tokens.append(self._finish(request, None, said[row], "end", alternatives=best))
            elif len(request.tokens) + 1 == request.sampling.max_new_tokens:  # only the last has no word
                tokens.append(self._finish(request, id_, said[row], "length", alternatives=best))
            elif cache.lengths[s] + 3 > room:
                tokens.append(self._finish(request, id_, said[row], "context", alternatives=best))
            else:
                tokens.append(self._token(request, id_, said[row], None, best))
        return tokens

    def _choose(self, logits: Tensor, speakers: list[Request]) -> Tensor:
        """The next word of each: logits (B, V) -> ids (B,); each by its own options and chance."""
        chosen = logits.argmax(-1)
        for row, request in enumerate(speakers):
            if request.sampling.processors is not None:
                words = [token.id for token in request.tokens if token.id is not None]
                said = torch.tensor([words], dtype=torch.long, device=logits.device)
                chosen[row] = choose(logits[row : row + 1], request.sampling, said, [request.generator])[0]
        return chosen

    def _finish(
        self, request: Request, id_: int | None, logprob: float, stop: str, error: str | None = None,
        alternatives: tuple[tuple[int, float], ...] = (),
    ) -> Token:  # fmt: skip
        """The last token of a request; its place is free again."""
        request.error = error
        token = self._token(request, id_, logprob, stop, alternatives)
        for s, other in enumerate(self._places):
            if other is request:
                self._places[s] = None
                self._free.remove(s)
                self._free.append(s)
        request.finished, request.stop_reason = time.monotonic(), stop
        return token

    def _token(
        self, request: Request, id_: int | None, logprob: float, stop: str | None,
        alternatives: tuple[tuple[int, float], ...],
    ) -> Token:  # fmt: skip
        waiting = request.unreadable
        waiting += [] if id_ is None else [id_]
        piece = self.tokenizer.decode(waiting) if waiting else ""
        if stop is None and piece.endswith("\ufffd"):  # an unfinished character
            piece = ""
        else:
            waiting.clear()
        token = Token(request, id_, logprob, piece, stop, alternatives)
        request.tokens.append(token)
        return token
