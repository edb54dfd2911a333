# SPDX-License-Identifier: Apache-2.0
"""`unimedvl serve` under a crowd: 32 clients for two minutes, memory, and 10,000 malformed requests.

The server is a process of its own with the nano model; the clients are OpenAI's, on the same machine. Every
answer is compared with the one that the inferer gives the same request alone.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # tests/, as pytest has it

import httpx
import openai
from _timing import arguments, load_average, report
from PIL import Image
from provenance.pictures import real
from serve_fuzz import malformed
from serve_load import Case, crowd

from monai_unimedvl import TextInferer, load
from monai_unimedvl.transforms.choosing import Choice, choose

MODEL, CLIENTS, SECONDS, BAD = "unimedvl_nano", 32, 120.0, 10_000
QUESTIONS = ("Which plane is this?", "Describe this image.", "Which contrast or stain is this?")


def cases() -> list[Case]:
    """12 pictures, 3 questions, greedy and sampled, with the answers that the inferer gives alone."""
    network, tokenizer = load(MODEL)
    found = []
    for n, pixels in enumerate(real(12)):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "x.png").write_bytes(stream.getvalue())
            picture = choose(Path(folder) / "x.png", Choice(square=True))[0][0].as_tensor()
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
        for question in QUESTIONS:
            options: dict[str, Any] = {"seed": n, "temperature": 0.8 * (n % 2)}
            (answer,) = TextInferer(tokenizer, max_new_tokens=64, **options)([[picture, question]], network)
            image = {"type": "image_url", "image_url": {"url": url}}
            content = [image, {"type": "text", "text": question}]
            asked = [{"role": "user", "content": content}]
            found.append(Case(asked, {**options, "max_tokens": 64}, answer.text))
    return found


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """`unimedvl serve` on a free port: its address and process id."""
    command = [sys.executable, "-m", "monai_unimedvl", "serve", "--model", MODEL, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("serving"))
        url = re.findall(r"http://\S+", said)[0]
        with tempfile.TemporaryFile() as rest:  # its log must not fill the pipe
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=rest)
            while httpx.get(f"{url}/health", timeout=60).status_code != 200:
                time.sleep(0.1)
            yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def resident(process: int) -> float:
    """MiB of a process in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 2**20


def growth(url: str, process: int, asked: list[Case]) -> tuple[float, float]:
    """MiB more after request 200 than after request 50, and the memory at the end."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    at = {}
    for n in range(1, 201):
        case = asked[n % len(asked)]
        client.chat.completions.create(model=MODEL, messages=case.messages, **case.options)  # type: ignore
        at[n] = resident(process)
    return at[200] - at[50], at[200]


def left(url: str, case: Case) -> float:
    """Seconds until all places are free again after 32 clients have hung up in the middle of an answer."""
    body = {"model": MODEL, "messages": case.messages, "stream": True, "max_tokens": 64}

    async def hang_up() -> None:
        async with httpx.AsyncClient(timeout=60) as client:

            async def one() -> None:
                async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                    async for _ in answer.aiter_bytes():
                        return

            await asyncio.gather(*(one() for _ in range(CLIENTS)))

    asyncio.run(hang_up())
    start = time.monotonic()
    while httpx.get(f"{url}/health", timeout=60).json()["answers_running"]:
        time.sleep(0.01)
    return time.monotonic() - start


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    before, asked = load_average(), cases()
    with server() as (url, process):
        grown, size = growth(url, process, asked)
        told = asyncio.run(crowd(f"{url}/v1", MODEL, asked, clients=CLIENTS, seconds=SECONDS))
        free = left(url, asked[1])
        got = malformed(httpx.get(f"{url}/openapi.json").json(), url, BAD)
    times = [told.percentile(share) for share in (0.5, 0.9, 0.99)]
    first = [told.percentile(share, told.first) for share in (0.5, 0.9, 0.99)]
    statuses = ", ".join(f"{code}: {count:,}" for code, count in sorted(got.statuses.items()))
    faults = f"{len(told.failed)} errors, {len(told.wrong)} wrong answers"
    cells = [
        ["what", "measured", "target"],
        [f"{CLIENTS} clients, {SECONDS:g} s", f"{len(told.seconds):,} answers, {faults}", "none"],
        ["seconds to the whole answer, p50, p90, p99", ", ".join(f"{x:.2f}" for x in times), "written down"],
        ["to the first piece of streamed ones", ", ".join(f"{x:.2f}" for x in first), "written down"],
        ["all 32 hang up: places free again", f"within {free:.2f} s", "freed"],
        ["memory from request 50 to 200", f"{grown:+.1f} MiB (at {size:.0f} MiB)", "<= 20 MiB"],
        [f"{got.count:,} malformed requests", statuses, "4xx and nothing else"],
    ]
    about = (
        "`unimedvl serve` with the nano model in a process of its own, OpenAI's clients beside it on the same"
        f" machine. {len(asked)} requests of 12 pictures and 3 questions, every answer compared."
        " Malformed: bodies that break the OpenAPI description, by schemathesis."
    )
    report(about, cells, options, before)
    for odd in got.odd[:10]:
        print(odd)
    assert not (told.failed or told.wrong or got.odd), "see above"


if __name__ == "__main__":
    main()
