# SPDX-License-Identifier: Apache-2.0
"""Branches of guidance in one forward against a forward each: from which size on packing does not pay.

Three different branches (an edit, see `draw.py`) on fast layers; both draw the same. A unit is one step. What
is measured here is `inferers.guided.TOGETHER`, the latent tokens of all branches up to which they are packed.
"""

from __future__ import annotations

from collections.abc import Callable

import draw
import torch
from _timing import HEAD, Side, Watch, arguments, load_average, report, rows, take_turns
from torch import Tensor

from monai_unimedvl.inferers import Context, flow_steps, guided
from monai_unimedvl.networks.fast import make_fast

SIZES = {4: 6, 8: 4, 12: 3, 16: 3, 24: 2, 32: 2}  # latent tokens a side: rounds
COLUMNS = ["shape", "tokens of a branch", "weights", *HEAD]


def packed(context: Context, most: int, noise: Tensor, drawn: list[Tensor]) -> Side:
    """Steps whose branches share a forward up to `most` latent tokens."""
    across = int(len(noise) ** 0.5)

    def side(tick: Callable[[], None]) -> None:
        usual, guided.TOGETHER = guided.TOGETHER, most
        tick()
        loop = flow_steps(
            context, [(across, across)], draw.KINDS["edit"], steps=2, shift=draw.SHIFT, noise=[noise]
        )
        for _, latents in loop:
            tick()
            drawn[:] = latents
        guided.TOGETHER = usual

    return side


def measured(context: Context, across: int, rounds: int) -> dict[str, Watch]:
    """A forward each, and one forward, in turns; both must draw the same."""
    noise = torch.randn(across**2, 96, generator=torch.Generator().manual_seed(across))
    drawn: list[list[Tensor]] = [[], []]
    sides = {
        "a forward each": packed(context, 1, noise, drawn[0]),
        "one forward": packed(context, 1 << 30, noise, drawn[1]),
    }
    watches = take_turns(sides, rounds)
    error = float((drawn[0][0] - drawn[1][0]).abs().max() / drawn[0][0].abs().max())
    full = context.network.decoder.embed.weight.dtype == torch.float32
    assert error < (1e-4 if full else 0.1), f"drawings differ by {error:.1g}"
    return watches


ABOUT = "Three branches of guidance, a forward each as baseline: milliseconds a step. "
ABOUT += "Ratios above 1 speak for one forward."


def main() -> None:
    """Both shapes, every size, both precisions."""
    options, load = arguments(__doc__ or ""), load_average()
    cells = [COLUMNS]
    for label, (shape, _) in draw.SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            context = draw.read(make_fast(draw.network(shape, dtype)), "edit")
            for across, rounds in SIZES.items():
                watches = measured(context, across, options.rounds or rounds)
                cells += rows([label, str(across**2), str(dtype).removeprefix("torch.")], watches)
    report(ABOUT, cells, options, load)


if __name__ == "__main__":
    main()
