# SPDX-License-Identifier: Apache-2.0
"""A model that says whether an answer means the truth: an endpoint, a local model, or what one said before.

    scored = score(rows, protocol("medevalkit-rule"))
    scored = judged(scored, Recorder(Endpoint(url, "some-model"), "judge.jsonl"))
    scored = judged(scored, Replay("judge.jsonl"))      # the same numbers, offline

Model and prompt are part of the result. A reply that cannot be read counts as wrong and is told: the
denominator stays. Nobody is asked unless a judge is passed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from monai_unimedvl.evaluation.protocols.base import Scored


class Judge(Protocol):
    """Whatever answers prompts of text.

    Args:
        model: its id, as it is written into the result.
    """

    model: str

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """A reply to each prompt, None where there is none."""


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked, and how its reply is read.

    Args:
        name: with its version.
        text: with the fields {question}, {truth} and {answer}.
        read: reply -> right or not; None if it says neither.
    """

    name: str
    text: str
    read: Callable[[str], bool | None]

    def of(self, question: str, truth: str, answer: str) -> str:
        """The prompt of one item; braces in the texts stay what they are."""
        fields = {"question": question, "truth": truth, "answer": answer}
        return re.sub(r"\{(question|truth|answer)\}", lambda found: fields[found[1]], self.text)


def right_or_wrong(reply: str) -> bool | None:
    """Reads one of the words right and wrong."""
    words = set(re.findall(r"[a-z]+", reply.casefold())) & {"right", "wrong"}
    return None if len(words) != 1 else words == {"right"}


def zero_is_right(reply: str) -> bool | None:
    """Reads <judge>0</judge> as right and <judge>1</judge> as wrong, as MedEvalKit asks for."""
    found = re.search(r"<judge>\s*([01])\s*</judge>", reply) or re.fullmatch(r"\s*([01])\s*", reply)
    return None if found is None else found[1] == "0"


def begin_correctness(reply: str) -> bool | None:
    """Reads [Begin Correctness] yes or no [End Correctness], as VLMEvalKit asks for."""
    found = re.search(r"\[Begin Correctness\](.*?)\[End Correctness\]", reply, re.DOTALL)
    said = found[1].casefold() if found else ""
    return None if ("yes" in said) == ("no" in said) else "yes" in said


READERS = {"words": right_or_wrong, "medevalkit": zero_is_right, "vlmevalkit": begin_correctness}
SAME_MEANING = JudgePrompt(
    "same-meaning 1",
    "You compare an answer with the true answer to a question about a medical image.\n\n"
    "Question: {question}\nTrue answer: {truth}\nAnswer: {answer}\n\n"
    "The answer is right if it means what the true answer means; more detail is fine as long as it "
    "contradicts nothing. An answer that says nothing, leaves out part of the truth, or says something "
    "else is wrong.\nReply with one word, right or wrong.",
    right_or_wrong,
)


def judged(scored: Scored, judge: Judge, prompt: JudgePrompt = SAME_MEANING) -> Scored:
    """The same scores with a judge's verdict wherever the protocol asks for one.

    Raises:
        ValueError: the judge cannot be reached, or a replayed file lacks a reply.
    """
    protocol, asked = scored.protocol, []
    for place, (row, kind) in enumerate(zip(scored.rows, scored.kinds, strict=True)):
        if not protocol.select(row) and protocol.judged(row, kind):
            asked.append(place)
    texts = [
        prompt.of(row.question, row.truth, row.answer) for row in (scored.rows[place] for place in asked)
    ]
    replies = judge.ask(texts) if texts else []
    verdicts = dict(zip(asked, replies, strict=True))
    hits, why, unparsed = list(scored.hits), list(scored.why), 0
    for place, row in enumerate(scored.rows):
        verdict: bool | None = None
        if place in verdicts:
            read = prompt.read(verdicts[place] or "")
            unparsed += read is None
            verdict = bool(read)
        elif scored.hits[place] is None:
            continue
        hits[place] = protocol.combine(scored.hits[place] or 0.0, verdict, row, scored.kinds[place])
        why[place] = ""
    stops = {place: said for place, said in scored.stops.items() if "judge" not in said}
    told = f"{judge.model}, prompt {prompt.name}"
    return replace(scored, hits=hits, why=why, stops=stops, judge=told, unparsed=unparsed)


class Endpoint:
    """A judge behind an OpenAI-compatible interface, asked at temperature 0.

    Args:
        url: up to and with /v1.
        model: as the endpoint names it.
        key: name of the variable of the environment that holds the key; it may be unset.
        workers: requests side by side. retries: of one that fails.
    """

    def __init__(
        self, url: str, model: str, *, key: str = "OPENAI_API_KEY", workers: int = 8, retries: int = 3,
        timeout: float = 120.0,
    ) -> None:  # fmt: skip
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"judge url is {url!r}, expected http(s)://HOST/v1: write the whole address.")
        self.url, self.model, self.key = url.rstrip("/"), model, key
        self.workers, self.retries, self.timeout = workers, retries, timeout

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """The replies; None for a prompt that failed every time.

        Raises:
            ValueError: not even the first prompt was answered.
        """
        first = self._one(prompts[0])
        if first is None:
            raise ValueError(
                f"The judge at {self.url} gave no reply for model {self.model!r}: check address, model and "
                f"the key in {self.key}."
            )
        with ThreadPoolExecutor(self.workers) as pool:
            return [first, *pool.map(self._one, prompts[1:])]

    def _one(self, prompt: str) -> str | None:
        body: dict[str, Any] = {"model": self.model, "temperature": 0}
        body["messages"] = [{"role": "user", "content": prompt}]
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        for _ in range(self.retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"])
            except (OSError, ValueError, KeyError, IndexError, TypeError, urllib.error.URLError):
                continue
        return None


@dataclass(frozen=True)
class LocalJudge:
    """A judge that is a function on this machine, such as a text inferer on its network.

    Args:
        model: its id. reply: prompts -> replies.
    """

    model: str
    reply: Callable[[Sequence[str]], Sequence[str]]

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """The replies."""
        return [str(said) for said in self.reply(prompts)]


class Recorder:
    """A judge whose replies are kept in a file of JSON lines; what is in it is not asked again."""

    def __init__(self, judge: Judge, path: str | Path) -> None:
        self.judge, self.path, self.model = judge, Path(path), judge.model

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """The replies, those of the file first; a reply that failed is not kept."""
        known = _replies(self.path) if self.path.is_file() else {}
        new = [prompt for prompt in dict.fromkeys(prompts) if _key(self.model, prompt) not in known]
        replies = self.judge.ask(new) if new else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf8") as stream:
            for prompt, reply in zip(new, replies, strict=True):
                if reply is None:
                    continue
                known[_key(self.model, prompt)] = reply
                line = {
                    "model": self.model,
                    "key": _key(self.model, prompt),
                    "prompt": prompt,
                    "reply": reply,
                }
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        return [known.get(_key(self.model, prompt)) for prompt in prompts]


class Replay:
    """A judge whose replies are read from the file of a `Recorder`.

    Raises:
        ValueError: no such file, or one that holds no replies or those of several models.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path} is no file of replies: record one with a judge first.")
        self._known = _replies(self.path)
        models = {json.loads(line)["model"] for line in self.path.open(encoding="utf8") if line.strip()}
        if len(models) != 1:
            found = ", ".join(sorted(models)) or "none"
            raise ValueError(
                f"{self.path.name} holds replies of {found}, expected one model: keep one a file."
            )
        (self.model,) = models

    def ask(self, prompts: Sequence[str]) -> list[str | None]:
        """The replies.

        Raises:
            ValueError: a prompt that the file has no reply to.
        """
        keys = [_key(self.model, prompt) for prompt in prompts]
        if lost := [place for place, key in enumerate(keys) if key not in self._known]:
            raise ValueError(
                f"{self.path.name} has no reply to {len(lost)} of {len(keys)} prompts, the first is number "
                f"{lost[0] + 1}: record these predictions with {self.model} first."
            )
        return [self._known[key] for key in keys]


def _key(model: str, prompt: str) -> str:
    return hashlib.sha256(f"{model}\n{prompt}".encode()).hexdigest()


def _replies(path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(path.open(encoding="utf8"), 1):
        if line.strip():
            try:
                saved = json.loads(line)
                found[_key(saved["model"], saved["prompt"])] = str(saved["reply"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path.name} line {number} is no recorded reply, expected model, prompt and reply as "
                    "JSON: remove the line."
                ) from error
    return found
