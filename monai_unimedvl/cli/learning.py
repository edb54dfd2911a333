# SPDX-License-Identifier: Apache-2.0
"""The options of the verbs that train. Standard library only."""

from __future__ import annotations

from typing import Any

from monai_unimedvl.cli import options as o


def add_training(verbs: Any) -> None:
    """`train` and `consolidate`."""
    train = o.add(
        verbs, "train", "fine-tune a model, or run the paper's curriculum",
        "--tasks seg-tissue --max-steps 150", model=False,
    )  # fmt: skip
    train.add_argument("--model", help="bundle or folder of weights to begin with (default: unimedvl_nano)")
    train.add_argument(
        "--stage", choices=["1", "2", "3", "all"],
        help="of the curriculum: foundation, instruction, unified; without it one stage of fine-tuning",
    )  # fmt: skip
    train.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, such as vqa sr4 text")
    train.add_argument("--data", nargs="+", metavar="FOLDER", help="shards to learn from, not the atlas")
    train.add_argument("--config", metavar="FILE", help="YAML or JSON of settings; options given here win")
    train.add_argument("--max-steps", type=o.whole(1), help="updates, of all stages together (default: 300)")
    train.add_argument("--lr", type=float, help="rate after the warm-up (default: 0.001)")
    train.add_argument(
        "--resume", nargs="?", const=True, metavar="CHECKPOINT", help="go on in --out, or from a checkpoint"
    )
    train.add_argument("--replay", metavar="FILE", help="pack.json of a run that stopped: where it breaks")
    train.add_argument("--seed", type=int, help="of samples, times and noise (default: 0)")
    train.add_argument("--device", help="cpu, cuda or auto (default: cpu)")
    train.add_argument("--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans")
    train.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")
    train.epilog = (
        f"{train.epilog}\n\nResults go to --out (default: runs), a folder for each stage: weights,"
        " checkpoints, log, pictures.\nSeveral processes: torchrun --nproc-per-node 2 -m monai_unimedvl train"
        " ...; docs/training.md has more."
    )

    consolidate = o.add(
        verbs, "consolidate", "turn a checkpoint, also a sharded one, into a folder of weights",
        "'runs/1-fine-tune/checkpoints/step=300.ckpt' --out weights", model=False,
    )  # fmt: skip
    consolidate.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt file or folder")
    consolidate.add_argument(
        "--model", help="bundle or folder to take the tokenizer from (default: that of the run)"
    )
