# SPDX-License-Identifier: Apache-2.0
"""What two processes do in training/test_ranks.py, under torchrun: data parallel, sharded, refused."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from monai_unimedvl.data.mixture import Stream
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.acceleration import is_sharded
from monai_unimedvl.training.curriculum import Curriculum, Stage
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.run import Material, train
from monai_unimedvl.training.settings import Settings

WORDS = ["Which plane is this?", "axial", "coronal", "A grey square."]
STEPS = 3


def start() -> tuple[UniMedVL, Tokenizer]:
    """The same small network everywhere."""
    tokenizer = Tokenizer.train(WORDS * 20, 300)
    torch.manual_seed(0)
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=2)
    network.grids = {"view": [16, 16, 8], "canvas": [16, 16, 8]}
    return network, tokenizer


def material() -> Material:
    """Packs of words alone and packs of pictures: ranks differ in what they see."""

    def picture(n: int) -> torch.Tensor:
        return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(n))

    def stream(name: str, question: list[object], draws: bool = False) -> Stream:
        def read(index: int, generator: torch.Generator) -> list[Turn]:
            asked = [picture(index) if part == "image" else part for part in question]
            told = picture(index) if draws else WORDS[1 + index % 2]
            return [Turn("user", asked), Turn("assistant", [told])]

        return Stream(name, read, 6, 1.0, draws=draws)

    lessons = {
        "text": [stream("text", [WORDS[0]])],
        "image-to-text": [stream("vqa", ["image", WORDS[0]])],
        "text-to-image": [stream("draw", [WORDS[3]], True)],
    }
    return Material(lessons)


def run(out: Path, *, ema: float = 0.0, **options: object) -> UniMedVL:
    """One stage of a few updates, whose packs hold a sample or two."""
    network, tokenizer = start()
    stage = Stage(
        "small", steps=STEPS, lr=1e-2, max_tokens=45, ema=ema,
        weights={"text": 1, "image-to-text": 1, "text-to-image": 1},
    )  # fmt: skip
    rates = Rates(optimizer="adamw", lr=1e-2, schedule="constant", warmup=0, eps=1e-6)
    settings = replace(
        Settings(precision="32-true", checkpoint_every=STEPS, validate_every=0, log_every=1, lanes=2,
                 loggers=("csv",), progress=False, out=str(out)),
        **options,
    )  # fmt: skip
    train(network, tokenizer, material(), settings, Curriculum((stage,), rates))
    return network


def main(out: Path) -> None:
    """On each of two ranks."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    run(out / "ddp")
    sharded = run(out / "fsdp", strategy="fsdp")
    assert is_sharded(sharded)
    parts = [p for p in sharded.parameters() if hasattr(p, "to_local")]
    held = sum(p.to_local().numel() for p in parts)
    assert held < 0.6 * sum(p.numel() for p in parts), "each rank holds about a half"
    try:
        run(out / "refused", strategy="fsdp", ema=0.9)
    except ValueError as error:
        (out / f"refused-{torch.distributed.get_rank()}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    torch.distributed.barrier()  # a rank that leaves first may abort the other at its exit
    torch.distributed.destroy_process_group()
