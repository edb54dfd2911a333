# SPDX-License-Identifier: Apache-2.0
"""A prompt of 128 words: ours against transformers' Qwen2ForCausalLM, both into an empty cache.

The same random weights and words; the states of the last word must agree. A unit is one prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from _timing import HEAD, Side, arguments, load_average, report, rows, take_turns
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


def main() -> None:
    """The two larger shapes in both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    names = ["transformers", "as it comes", "make_fast"]
    cells = [["shape", "weights", *HEAD]]
    for label, count in (("27M: hidden 512, 8 layers", 6), ("0.5B: hidden 896, 24 layers", 1)):
        shape, _, rounds = SHAPES[label]
        marks = Marks(*range(shape["vocab_size"] - 4, shape["vocab_size"]))
        prompt = torch.randint(
            0, shape["vocab_size"] - 4, (READ - 2,), generator=torch.Generator().manual_seed(1)
        )
        ids = torch.tensor([marks.text_start, *prompt.tolist(), marks.text_end])
        for dtype in (torch.float32, torch.bfloat16):
            plain = network(shape, dtype)
            fast = make_fast(network(shape, dtype, dict(plain.state_dict()), normed=False))
            read: list[list[Tensor]] = [[], [], []]
            sides = {
                names[0]: theirs(twin(plain, shape), ids, count, read[0]),
                names[1]: ours(plain, marks, prompt, count, read[1]),
                names[2]: ours(fast, marks, prompt, count, read[2]),
            }
            watches = take_turns(sides, options.rounds or rounds)
            size = float(read[0][0].float().abs().max())
            error = max(float((one[0] - read[0][0]).float().abs().max()) / size for one in read[1:])
            assert error < (1e-3 if dtype == torch.float32 else 0.2), f"states differ by {error:.1g}"
            name = f"{str(dtype).removeprefix('torch.')}, states within {error:.0e}"
            cells += rows([label, name], watches)
    report("Reading 128 words: milliseconds a prompt.", cells, options, load)


if __name__ == "__main__":
    main()
