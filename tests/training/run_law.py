# SPDX-License-Identifier: Apache-2.0
"""A small run over shards in a process of its own, for laws about kills and ranks.

python run_law.py SHARDS OUT STEPS WORKERS [resume]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.curriculum import Curriculum, Stage
from monai_unimedvl.training.material import corpus_material
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.run import train
from monai_unimedvl.training.settings import Settings


def main(shards: str, out: str, steps: int, workers: int, resume: bool) -> None:
    """Train, and note the number, samples and loss of each pack in order-RANK.jsonl."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", 0))
    step = UniMedVLModule.training_step

    def noted(self: UniMedVLModule, batch: Any, batch_idx: int) -> Any:
        losses = step(self, batch, batch_idx)
        row = [batch.number, batch.origins, float(losses["loss"])]
        with Path(out, f"order-{rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        return losses

    UniMedVLModule.training_step = noted  # type: ignore[method-assign]
    Path(out).mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.train(["Which plane is this? Make it sharp. Draw a head."] * 4, 300)
    torch.manual_seed(0)
    network = nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    material = corpus_material(shards)
    stage = Stage(
        "law", steps=steps, lr=1e-2, max_tokens=500, ema=0.9,
        weights={kind: 1 for kind, streams in material.lessons.items() if streams},
    )  # fmt: skip
    settings = Settings(
        out=out, precision="32-true", batch=2, workers=workers, checkpoint_every=1, keep=3, log_every=1,
        validate_every=0, loggers=("csv",), peak_flops=0, progress=False,
    )  # fmt: skip
    train(network, tokenizer, material, settings, Curriculum((stage,)), resume=resume)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "resume" in sys.argv[5:])
