# SPDX-License-Identifier: Apache-2.0
"""Several at once: prompts of different lengths, questions about one image, a long context, many requests.

- 8 prompts of 40 to 180 words together, by `Engine`, against one after the other: a unit is all eight, read
  and answered in 24 words each. And the same once they are read: a unit is one word of each.
- 8 questions about one image of 16 x 16 patches, which share it, against eight requests of their own.
- A word at 4,096 tokens of context, against the public scheme (layers as they come, and a cache that is
  copied at each word: keys and values of every layer go into fresh tensors), and against a word at 128.
- Resident memory of the process after 50 and after 200 requests of different lengths.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _timing import HEAD, Side, Watch, arguments, load_average, report, rows, take_turns

from monai_unimedvl.inferers import Context, Engine, Sampling, words
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.layers import rotary
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Marks, Routes, Text, View

WORDS = 24  # of each answer
SHAPES: dict[str, dict[str, Any]] = {
    "27M: hidden 512, 8 layers": {
        "vocab_size": 8192, "hidden_size": 512, "mlp_dim": 1408, "num_layers": 8, "num_heads": 8,
        "num_kv_heads": 2, "rope_theta": 1e4, "max_context": 8192,
    },
}  # fmt: skip
MARKS = Marks(8188, 8189, 8190, 8191)
ALONE = Routes(1, 0)  # one token of the expert that understands


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


def waiting(network: UniMedVL, batch: list[list[Any]]) -> tuple[Engine, list[Any]]:
    """An engine of eight places and what was asked of it."""
    engine = Engine(network, Bare(), to_segments=Bare(), max_running=8)  # type: ignore[arg-type]
    return engine, [engine.submit(prompt, max_new_tokens=WORDS) for prompt in batch]


def together(network: UniMedVL, batch: list[list[Any]], said: list[Any]) -> Side:
    """All eight in one engine."""

    def side(tick: Callable[[], None]) -> None:
        tick()
        engine, requests = waiting(network, batch)
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


def speaking_together(network: UniMedVL, batch: list[list[Any]], said: list[Any]) -> Side:
    """A word of each of eight, once their prompts are read."""

    def side(tick: Callable[[], None]) -> None:
        engine, requests = waiting(network, batch)
        engine.step()  # reads, and says the first word
        tick()
        while not engine.idle:
            engine.step()
            tick()
        said[:] = [request.answer.ids for request in requests]

    return side


def speaking_apart(network: UniMedVL, batch: list[list[Any]], said: list[Any]) -> Side:
    """The same words in a context each; a unit is a word of each, too."""

    def side(tick: Callable[[], None]) -> None:
        said.clear()
        contexts = [Context(network, Bare(), samples=1) for _ in batch]  # type: ignore[arg-type]
        for context, prompt in zip(contexts, batch, strict=True):
            context.read([prompt])
        speakers = [words(context, Sampling(WORDS)) for context in contexts]
        ids = [[spoken.id for (spoken,) in (next(one) for one in speakers)]]
        tick()
        for _ in range(WORDS - 1):
            ids.append([spoken.id for (spoken,) in (next(one) for one in speakers)])
            tick()
        said[:] = list(zip(*ids, strict=True))

    return side


def at(network: UniMedVL, tokens: int, count: int, said: list[int]) -> Side:
    """Words with so many tokens of past."""
    context = past_of(network, tokens, count)
    cache = context.cache

    def side(tick: Callable[[], None]) -> None:
        said.clear()
        cache.lengths[0] = cache.positions[0] = tokens
        context.unread[0] = []
        tick()
        for (word,) in words(context, Sampling(count)):
            tick()
            said.append(word.id if word.id is not None else -1)

    return side


def past_of(network: UniMedVL, tokens: int, count: int) -> Context:
    """A context of one sample whose past is random numbers."""
    context = Context(network, Bare(), samples=1, capacity=tokens + count + 8)  # type: ignore[arg-type]
    context.cache.keys.normal_(generator=torch.Generator().manual_seed(0))
    context.cache.values.normal_(generator=torch.Generator().manual_seed(1))
    return context


def public(network: UniMedVL, tokens: int, count: int, said: list[int]) -> Side:
    """The public scheme, written from a description of it: at each word every layer makes fresh tensors for
    keys and values, and writes the past and the new ones into them by lists of places."""
    decoder = network.decoder
    cache = past_of(network, tokens, count).cache
    kept = [
        (k[0, :, :tokens].transpose(0, 1).contiguous(), v[0, :, :tokens].transpose(0, 1).contiguous())
        for k, v in zip(cache.keys, cache.values, strict=True)
    ]

    @torch.no_grad()
    def side(tick: Callable[[], None]) -> None:
        past, id_ = list(kept), MARKS.text_start
        said.clear()
        tick()
        for n in range(tokens, tokens + count):
            x = decoder.embed(torch.tensor([id_]))
            cos, sin = rotary(torch.tensor([n]), decoder.head_size, decoder.rope_theta)
            rope, old, new = (cos.to(x.dtype), sin.to(x.dtype)), torch.arange(n), torch.tensor([n])
            for i, layer in enumerate(decoder.layers):
                q, k, v = layer.attention.project(layer.norm1(x, ALONE), ALONE, rope)
                keys, values = k.new_zeros(n + 1, *k.shape[1:]), v.new_zeros(n + 1, *v.shape[1:])
                keys[new], keys[old], values[new], values[old] = k, past[i][0], v, past[i][1]
                past[i] = (keys, values)
                k, v = (part.transpose(0, 1)[None] for part in (keys, values))  # (1, K, N, E)
                q = q.view(1, k.shape[1], -1, k.shape[3])  # heads of a group as rows: the fastest call
                y = F.scaled_dot_product_attention(q, k, v)
                x = x + layer.attention.out(y.view(1, -1), ALONE)
                x = x + layer.mlp(layer.norm2(x, ALONE), ALONE)
            id_ = int(F.linear(decoder.norm(x, ALONE), decoder.embed.weight).argmax())
            said.append(id_)
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


ABOUT = "Several at once, against each alone; and a word at a long past."
COLUMNS = ["shape", "weights", "what", *HEAD]
LABEL = "27M: hidden 512, 8 layers"


def at_once(made: UniMedVL, name: str, image: bool, rounds: int) -> tuple[dict[str, Watch], list[list[str]]]:
    """Eight prompts, or questions about one image, together and apart."""
    batch, said = prompts(image), ([], [])
    sides = {
        "one after the other": apart(made, batch, said[0]),
        "together": together(made, batch, said[1]),
    }
    watches = take_turns(sides, rounds)
    same = sum(a == b for a, b in zip(*said, strict=True))
    assert made.decoder.embed.weight.dtype == torch.bfloat16 or same == 8, f"{8 - same} answers differ"
    what = "8 questions, one image" if image else "8 prompts"
    return watches, rows([LABEL, name, f"{what}, {same}/8 answers equal"], watches)


def speaking(made: UniMedVL, name: str, rounds: int) -> tuple[dict[str, Watch], list[list[str]]]:
    """The words of eight answers, together and apart, reading left out."""
    batch, said = prompts(False), ([], [])
    sides = {
        "one after the other": speaking_apart(made, batch, said[0]),
        "together": speaking_together(made, batch, said[1]),
    }
    watches = take_turns(sides, rounds)
    same = sum(a == b for a, b in zip(*said, strict=True))
    assert made.decoder.embed.weight.dtype == torch.bfloat16 or same == 8, f"{8 - same} answers differ"
    return watches, rows([LABEL, name, f"a word of each of 8, {same}/8 answers equal"], watches)


def long_past(
    made: UniMedVL, name: str, rounds: int, count: int = 6
) -> tuple[dict[str, Watch], list[list[str]]]:
    """A word at 4,096 tokens by the public scheme and by ours, and at 128 by ours."""
    said: list[list[int]] = [[], [], []]
    sides = {
        "public scheme, 4,096 tokens": public(made, 4096, count, said[0]),
        "4,096 tokens": at(made, 4096, count, said[1]),
        "128 tokens": at(made, 128, count, said[2]),
    }
    watches = take_turns(sides, rounds)
    assert made.decoder.embed.weight.dtype == torch.bfloat16 or said[0] == said[1], f"said {said}"
    return watches, rows([LABEL, name, "a word"], watches)


def main() -> None:
    """All of it, plain and fast, in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    cells = [COLUMNS]
    for dtype in (torch.float32, torch.bfloat16):
        for fast in (False, True):
            made = network(SHAPES[LABEL], dtype, fast)
            name = f"{str(dtype).removeprefix('torch.')}, {'make_fast' if fast else 'as it comes'}"
            for image in (False, True):
                cells += at_once(made, name, image, options.rounds or 3)[1]
            cells += speaking(made, name, options.rounds or 3)[1]
            cells += long_past(made, name, options.rounds or 3)[1]
    grown = growth(network(SHAPES[LABEL], torch.float32, False))
    about = f"{ABOUT} Resident memory after 50, 100, 150 and 200 requests: {', '.join(grown[:-1])} MiB "
    about += f"({grown[-1]} from 50 to 200; at most +20 wanted)."
    report(about, cells, options, load)


if __name__ == "__main__":
    main()
