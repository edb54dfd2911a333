# SPDX-License-Identifier: Apache-2.0
"""Several at once: prompts of different lengths, questions about one image, a long context, many requests.

- 8 prompts of 40 to 180 words together, by `Engine`, against one after the other: a unit is all eight.
- 8 questions about one image of 16 x 16 patches, which share it, against eight requests of their own.
- A word at 4,096 tokens of context, against a cache that is copied at each word (the public scheme: keys and
  values of every layer go into fresh tensors), and against a word at 128.
- Resident memory of the process after 50 and after 200 requests of different lengths.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _timing import HEAD, Side, arguments, load_average, report, rows, take_turns

from monai_unimedvl.inferers import Context, Engine, Sampling, words
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Marks, Text, View

WORDS = 24  # of each answer
SHAPES: dict[str, dict[str, Any]] = {
    "27M: hidden 512, 8 layers": {
        "vocab_size": 8192, "hidden_size": 512, "mlp_dim": 1408, "num_layers": 8, "num_heads": 8,
        "num_kv_heads": 2, "rope_theta": 1e4, "max_context": 8192,
    },
}  # fmt: skip
MARKS = Marks(8188, 8189, 8190, 8191)


class Bare:
    """What an engine asks of a tokenizer and of `ToSegments`: prompts come as segments already."""

    marks = MARKS
    tokenizer: Any

    def __init__(self) -> None:
        self.tokenizer = self

    def decode(self, ids: Any) -> str:
        """No text."""
        return ""

    def __call__(self, prompt: Any, **_: Any) -> Any:
        return list(prompt)


def network(shape: dict[str, Any], dtype: torch.dtype, fast: bool) -> UniMedVL:
    """Random weights with a vision encoder; nobody stops before the last word."""
    torch.manual_seed(0)
    made = from_config(
        {
            "decoder": {**shape, "tied": True},
            "vision": {
                "hidden_size": 256, "mlp_dim": 768, "num_layers": 6, "num_heads": 4, "patch_size": 14,
                "grid_side": 16,
            },
            "autoencoder": {"kind": "patch", "patch": 2, "latent_channels": 3},
        }
    )  # fmt: skip
    made.decoder.embed.weight.data[MARKS.text_end] = 0
    made = made.to(dtype).eval()
    return make_fast(made) if fast else made


def prompts(image: bool) -> list[list[Any]]:
    """Eight: words of different lengths, or one image and eight short questions."""
    chance = torch.Generator().manual_seed(1)
    view = View(torch.randn(256, 588, generator=chance), (16, 16))
    lengths = [12] * 8 if image else list(range(40, 200, 20))
    asked = [Text(torch.randint(0, 8000, (n,), generator=chance)) for n in lengths]
    return [[view, text] if image else [text] for text in asked]


def together(network: UniMedVL, batch: list[list[Any]], said: list[Any]) -> Side:
    """All eight in one engine."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        engine = Engine(network, Bare(), to_segments=Bare(), max_running=8)  # type: ignore[arg-type]
        requests = [engine.submit(prompt, max_new_tokens=WORDS) for prompt in batch]
        engine.run()
        tick()
        said[:] = [request.answer.ids for request in requests]

    return side


def apart(network: UniMedVL, batch: list[list[Any]], said: list[Any]) -> Side:
    """One after the other, each in a context of its own."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        said.clear()
        for prompt in batch:
            context = Context(network, Bare(), samples=1)  # type: ignore[arg-type]
            context.read([prompt])
            ids = [word.id for spoken in words(context, Sampling(WORDS)) for word in spoken]
            said.append(tuple(id_ for id_ in ids if id_ is not None))
        tick()

    return side


def at(network: UniMedVL, tokens: int, copied: bool, count: int = 8) -> Side:
    """Words with so many tokens of past; `copied`: each word copies keys and values of every layer."""
    context = Context(network, Bare(), samples=1, capacity=tokens + count + 8)  # type: ignore[arg-type]
    cache = context.cache
    cache.keys.normal_(generator=torch.Generator().manual_seed(0))
    cache.values.normal_(generator=torch.Generator().manual_seed(1))

    def side(tick: Callable[[], None]) -> None:
        cache.lengths[0] = cache.positions[0] = tokens
        context.unread[0] = []
        tick()
        for _ in words(context, Sampling(count)):
            if copied:
                n = cache.lengths[0]
                for layer in range(len(cache.keys)):
                    for kept in (cache.keys, cache.values):
                        old = kept[layer, 0, :, :n].transpose(0, 1)  # (n, K, E)
                        new = old.new_zeros(old.shape)
                        new[torch.arange(n)] = old
            tick()

    return side


def growth(network: UniMedVL) -> list[str]:
    """Resident MiB after 50, 100, 150 and 200 requests of different lengths, in the same engine."""
    engine = Engine(network, Bare(), to_segments=Bare(), max_running=8)  # type: ignore[arg-type]
    chance, found = torch.Generator().manual_seed(2), []
    lengths = torch.randint(5, 120, (200,), generator=chance).tolist()
    for n, length in enumerate(lengths):
        engine.submit([Text(torch.randint(0, 8000, (length,), generator=chance))], max_new_tokens=2 + n % 7)
        if n % 3:
            engine.step()
        if n + 1 in (50, 100, 150, 200):
            engine.run()
            found.append(_resident())
    return [f"{x:.0f}" for x in found] + [f"{found[-1] - found[0]:+.1f}"]


def _resident() -> float:
    status = Path("/proc/self/statm")
    if status.is_file():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """All of it, plain and fast, in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    cells = [["shape", "weights", "what", *HEAD]]
    for label, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for fast in (False, True):
                made = network(shape, dtype, fast)
                name = f"{str(dtype).removeprefix('torch.')}, {'make_fast' if fast else 'as it comes'}"
                for what, image in (("8 prompts", False), ("8 questions, one image", True)):
                    batch, said = prompts(image), ([], [])
                    sides = {
                        "one after the other": apart(made, batch, said[0]),
                        "together": together(made, batch, said[1]),
                    }
                    watches = take_turns(sides, options.rounds or 3)
                    same = sum(a == b for a, b in zip(*said, strict=True))
                    assert dtype == torch.bfloat16 or same == 8, f"{8 - same} answers differ"
                    cells += rows([label, name, f"{what}, {same}/8 answers equal"], watches)
                sides = {
                    "cache copied a word": at(made, 4096, True),
                    "at 4096 tokens": at(made, 4096, False),
                    "at 128 tokens": at(made, 128, False),
                }
                watches = take_turns(sides, options.rounds or 3)
                flat = median(watches["at 4096 tokens"].cpu) / median(watches["at 128 tokens"].cpu)
                cells += rows([label, name, f"a word; 4096 takes {flat:.2f} times 128"], watches)
    grown = growth(network(SHAPES["27M: hidden 512, 8 layers"], torch.float32, False))
    about = "Several at once, against each alone. Resident memory after 50, 100, 150 and 200 requests: "
    about += f"{', '.join(grown[:-1])} MiB ({grown[-1]} from 50 to 200; at most +20 wanted)."
    report(about, cells, options, load)


if __name__ == "__main__":
    main()
