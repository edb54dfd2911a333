# SPDX-License-Identifier: Apache-2.0
"""A prompt of 128 words: ours against transformers' Qwen2ForCausalLM, both into an empty cache.

The same random weights and words; the states of the last word must agree. A unit is one prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _timing import HEAD, Side, Watch, arguments, load_average, report, rows, take_turns
from decode import READ, SHAPES, network, twin
from torch import Tensor
from transformers import DynamicCache, Qwen2ForCausalLM

from monai_unimedvl.networks.cache import KVCache
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Marks, Text, pack


def ours(network: UniMedVL, marks: Marks, prompt: Tensor, count: int, read: list[Tensor]) -> Side:
    """One forward of a pack into a cache."""

    @torch.no_grad()
    def side(tick: Callable[[], None]) -> None:
        for _ in range(count):
            tick()
            cache = KVCache(network.decoder, 1)
            read[:] = [network(pack([[Text(prompt)]], marks), cache).hidden[-1]]
        tick()

    return side


def theirs(model: Qwen2ForCausalLM, ids: Tensor, count: int, read: list[Tensor]) -> Side:
    """One forward of the body of the model: neither side scores words."""

    @torch.no_grad()
    def side(tick: Callable[[], None]) -> None:
        for _ in range(count):
            tick()
            found = model.model(ids[None], past_key_values=DynamicCache(), use_cache=True)
            read[:] = [found.last_hidden_state[0, -1]]
        tick()

    return side


ABOUT = "Reading 128 words: milliseconds a prompt."
COLUMNS = ["shape", "weights", *HEAD]
COUNTS = {"27M: hidden 512, 8 layers": 6, "0.5B: hidden 896, 24 layers": 1}  # prompts a round


def measured(
    label: str, dtype: torch.dtype, rounds: int | None = None
) -> tuple[dict[str, Watch], list[list[str]]]:
    """transformers, then our plain and our fast layers, in turns; and their rows under `COLUMNS`."""
    shape, _, usual = SHAPES[label]
    marks = Marks(*range(shape["vocab_size"] - 4, shape["vocab_size"]))
    chance = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, shape["vocab_size"] - 4, (READ - 2,), generator=chance)
    ids = torch.tensor([marks.text_start, *prompt.tolist(), marks.text_end])
    plain, count = network(shape, dtype), COUNTS[label]
    fast = make_fast(network(shape, dtype, dict(plain.state_dict()), normed=False))
    read: list[list[Tensor]] = [[], [], []]
    sides = {
        "transformers": theirs(twin(plain, shape), ids, count, read[0]),
        "as it comes": ours(plain, marks, prompt, count, read[1]),
        "make_fast": ours(fast, marks, prompt, count, read[2]),
    }
    watches = take_turns(sides, rounds or usual)
    size = float(read[0][0].float().abs().max())
    error = max(float((one[0] - read[0][0]).float().abs().max()) / size for one in read[1:])
    assert error < (1e-3 if dtype == torch.float32 else 0.2), f"states differ by {error:.1g}"
    about = f"{str(dtype).removeprefix('torch.')}, states within {error:.0e}"
    return watches, rows([label, about], watches)


def main() -> None:
    """The two larger shapes in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    cells = [COLUMNS]
    for label in COUNTS:
        for dtype in (torch.float32, torch.bfloat16):
            cells += measured(label, dtype, options.rounds)[1]
    report(ABOUT, cells, options, load)


if __name__ == "__main__":
    main()
