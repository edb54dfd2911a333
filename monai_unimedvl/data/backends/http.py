# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible endpoint as a writer, and as a scorer of texts by its embeddings.

Images leave this machine for the host that the address names: nothing is sent anywhere else, redirects are
not followed, and plain http is only for hosts of one's own network.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from monai_unimedvl.data.backends import data_url
from monai_unimedvl.data.record import InvalidRecord

KEY = "UNIMEDVL_API_KEY"  # environment: sent as a bearer token
AGAIN = (429, 500, 502, 503, 504)  # of a busy or starting server
TRIES = 4
MAX_ANSWER = 16_000_000  # bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: images go to the host that was named, and to no other."""
        return None


class Endpoint:
    """A server with /chat/completions and /embeddings.

    Args:
        address: of the interface and the model: "https://host/v1#model".
        max_tokens: of an answer.
        timeout: seconds of one request.
        pause: seconds before the second try; each later one waits twice as long.

    Raises:
        ValueError: an address without a model, or plain http to a host of the open internet.
    """

    def __init__(
        self, address: str, *, max_tokens: int = 512, timeout: float = 120.0, pause: float = 1.0
    ) -> None:
        base, _, model = address.partition("#")
        host = urlsplit(base).hostname or ""
        if not model or not host:
            raise ValueError(f"endpoint {base!r} names no model, expected https://HOST/v1#MODEL: add it.")
        if base.startswith("http://") and not _near(host):
            raise ValueError(
                f"endpoint {host} is asked by plain http, expected https on the open internet: use it."
            )
        self.base, self.model, self.name = base.rstrip("/"), model, model
        self.max_tokens, self.timeout, self.pause = max_tokens, timeout, pause
        self._opener = urllib.request.build_opener(_NoRedirect)

    def write(self, prompt: str, image: Tensor | None = None, *, count: int = 1, seed: int = 0) -> list[str]:
        """See `Writer`; one request for each answer, since not every server knows `n`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_url(image)}})
        said = []
        for number in range(count):
            answer = self._post(
                "chat/completions",
                {
                    "model": self.model, "messages": [{"role": "user", "content": content}],
                    "max_tokens": self.max_tokens, "seed": seed + number,
                    "temperature": 0.0 if count == 1 else 0.7,
                },
            )  # fmt: skip
            try:
                words = answer["choices"][0]["message"]["content"]
                if not isinstance(words, str):
                    raise TypeError
            except (KeyError, IndexError, TypeError) as error:
                raise InvalidRecord("model-failed", "the endpoint gave no words, expected some.") from error
            said.append(words.strip())
        return said

    def text_text(self, text: str, others: Sequence[str]) -> list[float]:
        """See `Scorer`; cosines of embeddings, moved from [-1, 1] to [0, 1]."""
        answer = self._post("embeddings", {"model": self.model, "input": [text, *others]})
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            first, *rest = ([float(x) for x in row["embedding"]] for row in rows)
            scores = [(1 + _cosine(first, other)) / 2 for other in rest]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "the endpoint gave no embeddings, expected data[i].embedding: check it."
            ) from error
        if len(scores) != len(others):
            raise ValueError(f"the endpoint gave {len(scores)} embeddings, expected {len(others)}: check it.")
        return scores

    def image_text(self, image: Tensor, texts: Sequence[str]) -> list[float]:
        """There is no such call in this interface.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an endpoint cannot score an image against a text: name a folder: or replay: scorer."
        )

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.base}/{path}", json.dumps(body).encode(), headers)
        for attempt in range(TRIES):
            try:
                with self._opener.open(request, timeout=self.timeout) as answer:
                    content = answer.read(MAX_ANSWER + 1)
                if len(content) > MAX_ANSWER:
                    raise ValueError(f"the endpoint answered more than {MAX_ANSWER:,} bytes, expected less.")
                found = json.loads(content)
                if not isinstance(found, dict):
                    raise ValueError("the endpoint answered no JSON object, expected one: check its address.")
                return found
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN or attempt == TRIES - 1:
                    raise ValueError(
                        f"the endpoint refused with {error.code} ({error.reason}), expected 200: check model "
                        f"and key ({KEY})."
                    ) from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == TRIES - 1:
                    raise ValueError(
                        f"endpoint {urlsplit(self.base).hostname} is silent, expected a server: start it."
                    ) from error
            except json.JSONDecodeError as error:
                raise ValueError("the endpoint answered no JSON, expected it: check its address.") from error
            time.sleep(self.pause * 2**attempt)
        raise AssertionError("every try returns or raises")


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    if len(first) != len(second):
        raise ValueError("embeddings of two lengths")
    lengths = (sum(x * x for x in first) * sum(x * x for x in second)) ** 0.5
    return sum(x * y for x, y in zip(first, second, strict=True)) / lengths if lengths else 0.0


def _near(host: str) -> bool:
    """This machine or its own network; a bare name has no dot."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))
    return address.is_private or address.is_loopback
