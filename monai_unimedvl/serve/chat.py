# SPDX-License-Identifier: Apache-2.0
"""/v1/chat/completions: dialogues with images in, words out, whole or as they come."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from monai_unimedvl.inferers import Token
from monai_unimedvl.sequence import Turn
from monai_unimedvl.serve.limits import Refused
from monai_unimedvl.serve.messages import dialogue_of
from monai_unimedvl.serve.schema import Chat, Completion, Error
from monai_unimedvl.serve.service import Service, while_there
from monai_unimedvl.tokenizer import Tokenizer

REASONS = {"end": "stop", "length": "length", "context": "length", "stop": "stop"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error} for code in (400, 401, 403, 404, 405, 408, 413, 415, 429, 499, 500, 503, 504)
}


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions", response_model=Completion, responses=REFUSALS, tags=["OpenAI"],
        response_model_exclude_unset=False,
    )  # fmt: skip
    async def complete(body: Chat, request: Request) -> Any:
        """Answer a dialogue with images as data URLs; with `stream` as server-sent events."""
        service.check_model(body.model)
        options = options_of(body, service)
        turns = await service.in_thread(dialogue_of, body.messages, service.limits, service.square)
        if body.stream:
            return await _stream(service, request, body, turns, options)
        work = _answers(service, turns, body, options)
        answers: Sequence[Answer] = await while_there(request, work, service.limits.seconds)
        return {
            **_envelope(service, "chat.completion"),
            "choices": [
                one.choice(i, bool(body.logprobs), service.tokenizer) for i, one in enumerate(answers)
            ],
            "usage": usage_of(answers),
            "provenance": service.provenance(),
        }

    return routes


def seeds_of(body: Chat) -> list[int]:
    """One for each answer that is wanted."""
    return [((body.seed or 0) + i) % 2**63 for i in range(body.n or 1)]


def options_of(body: Chat, service: Service) -> dict[str, Any]:
    """What the engine is asked for.

    Raises:
        Refused: settings that do not go together, or beyond the limits.
    """
    limits = service.limits
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Refused(
            "max_tokens and max_completion_tokens came, expected one: leave one out.", param="max_tokens"
        )
    words = body.max_completion_tokens or body.max_tokens or limits.words
    if words > limits.words:
        raise Refused(
            f"max_tokens is {words}, at most {limits.words} are said here: lower it.", param="max_tokens"
        )
    if body.top_logprobs and not body.logprobs:
        raise Refused("top_logprobs came without logprobs: set logprobs to true.", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise Refused("stream_options came without stream: set stream to true.", param="stream_options")
    if (body.n or 1) > limits.choices:
        raise Refused(f"n is {body.n}, at most {limits.choices} are made: lower it.", param="n")
    if (body.n or 1) > 1 and body.stream:
        raise Refused("n above 1 came with stream, where one answer is streamed: ask again.", param="n")
    return {
        "max_new_tokens": words,
        "temperature": body.temperature or 0.0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "top_k": body.top_k or 0,
        "repetition_penalty": body.repetition_penalty or 1.0,
        "think": body.think,
        "alternatives": body.top_logprobs or 0,
    }


@dataclass
class Answer:
    """What was said so far, cut where a stop word begins.

    Args:
        stops: the words that end an answer, left out of it.
    """

    stops: Sequence[str] = ()
    text: str = ""
    shown: int = 0
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None

    def add(self, token: Token) -> str:
        """Take a token in; returns what may be shown now: never a part of what could become a stop word."""
        self.text += token.piece
        self.tokens.append(token)
        found = [at for at in (self.text.find(stop, self.shown) for stop in self.stops) if at >= 0]
        if found:
            self.text, self.reason = self.text[: min(found)], "stop"
        elif token.stop is not None:
            self.reason = token.stop
        ready = len(self.text) if self.reason else len(self.text) - self._held()
        piece, self.shown = self.text[self.shown : ready], max(ready, self.shown)
        return piece

    def choice(self, index: int, logprobs: bool, tokenizer: Tokenizer) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": self.text, "refusal": None},
            "finish_reason": REASONS[self.reason or "end"],
            "logprobs": logprobs_of(self.tokens, tokenizer) if logprobs else None,
        }

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop word."""
        return max(
            (n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0
        )


def logprobs_of(tokens: Sequence[Token], tokenizer: Tokenizer) -> dict[str, Any]:
    """Of the words among some tokens."""

    def told(id_: int, logprob: float) -> dict[str, Any]:
        word = tokenizer.decode([id_], keep_marks=True)
        whole = "\ufffd" not in word  # else a part of a character, which has no text of its own
        return {"token": word, "logprob": logprob, "bytes": list(word.encode()) if whole else None}

    return {
        "content": [
            {**told(t.id, t.logprob), "top_logprobs": [told(*other) for other in t.alternatives]}
            for t in tokens
            if t.id is not None
        ],
        "refusal": None,
    }


def usage_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of the prompt, once, and of all answers."""
    asked = answers[0].tokens[0].request
    said = sum(token.id is not None for one in answers for token in one.tokens)
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": asked.prompt_tokens + said,
        "prompt_tokens_details": {"cached_tokens": asked.shared_tokens},
    }


async def _answer(service: Service, turns: Sequence[Turn], body: Chat, options: dict[str, Any]) -> Answer:
    answer = Answer(_stops(body))
    async with aclosing(service.listen(turns, **options)) as tokens:
        async for token in tokens:
            answer.add(token)
            if answer.reason:
                break
    return answer


async def _answers(
    service: Service, turns: Sequence[Turn], body: Chat, options: dict[str, Any]
) -> Sequence[Answer]:
    """All answers that are wanted, side by side; with one that fails the others are let go."""
    tasks = [
        asyncio.create_task(_answer(service, turns, body, {**options, "seed": seed}))
        for seed in seeds_of(body)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _stream(
    service: Service, request: Request, body: Chat, turns: Sequence[Turn], options: dict[str, Any]
) -> Response:  # fmt: skip
    """Refusals that are known before the first word come as such, later ones as an event."""
    tokens = service.listen(turns, **options, seed=seeds_of(body)[0])
    deadline = asyncio.get_running_loop().time() + service.limits.seconds
    first = await while_there(request, anext(tokens), service.limits.seconds)
    return StreamingResponse(
        _events(service, body, first, tokens, deadline),
        media_type="text/event-stream", headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )  # fmt: skip


async def _next(tokens: Any, deadline: float, service: Service) -> Token:
    try:
        async with asyncio.timeout_at(deadline):
            return await anext(tokens)
    except TimeoutError as error:
        raise Refused(
            f"No answer within {service.limits.seconds:g} seconds: ask for less.", status=504, code="timeout"
        ) from error


async def _events(
    service: Service, body: Chat, token: Token, tokens: Any, deadline: float
) -> AsyncIterator[str]:  # fmt: skip
    """The answer as server-sent events."""
    answer, envelope = Answer(_stops(body)), _envelope(service, "chat.completion.chunk")
    told = bool(body.stream_options and body.stream_options.include_usage)

    def event(delta: dict[str, Any], some: Sequence[Token] = ()) -> str:
        choice = {
            "index": 0,
            "delta": delta,
            "finish_reason": REASONS[answer.reason] if answer.reason else None,
            "logprobs": logprobs_of(some, service.tokenizer) if body.logprobs and some else None,
        }
        return _line({**envelope, "choices": [choice], **({"usage": None} if told else {})})

    async with aclosing(tokens):
        try:
            yield event({"role": "assistant", "content": ""})
            waiting: list[Token] = []
            while True:
                waiting.append(token)
                piece = answer.add(token)
                if answer.reason:
                    break
                if piece:
                    yield event({"content": piece}, waiting)
                    waiting = []
                token = await _next(tokens, deadline, service)
            yield event({"content": piece} if piece or body.logprobs else {}, waiting)
            if told:
                yield _line({**envelope, "choices": [], "usage": usage_of([answer])})
            yield "data: [DONE]\n\n"
        except Refused as refused:
            yield _line(refused.body)


def _envelope(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.name,
        "system_fingerprint": service.fingerprint,
    }


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _stops(body: Chat) -> list[str]:
    return [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
