# SPDX-License-Identifier: Apache-2.0
"""The options of the verbs that train, and of the one that plans. Standard library only."""

from __future__ import annotations

from typing import Any

from monai_unimedvl.cli import options as o


def add_training(verbs: Any) -> None:
    """`train`, `plan`, `autoencoder` and `consolidate`."""
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
        " ...; docs/TRAINING.md has more."
    )

    plan = o.add(
        verbs, "plan", "say what a training takes of memory, time and disk, before it starts",
        "--model released --stage 3 --flops 200e12", model=False,
    )  # fmt: skip
    plan.add_argument("config", nargs="?", metavar="CONFIG", help="that of train --config (default: none)")
    plan.add_argument("--model", help="bundle, folder of weights, or released (default: unimedvl_nano)")
    plan.add_argument("--stage", choices=["1", "2", "3"], help="of the curriculum (default: 1)")
    plan.add_argument("--device", help="cpu or cuda (default: that of the config, else cpu)")
    plan.add_argument("--max-tokens", type=o.whole(1), help="of a pack (default: the stage's)")
    plan.add_argument("--words", type=o.whole(2), default=64, help="tokens of a text (default: 64)")
    plan.add_argument(
        "--flops", type=float,
        help="operations a second that one device sustains (default: 1e14 on cuda, 5e10 on cpu)",
    )  # fmt: skip
    plan.add_argument(
        "--adapters", choices=["understanding", "generation", "both", "connector"],
        help="train LoRA adapters instead of the weights",
    )  # fmt: skip
    plan.add_argument("--rank", type=o.whole(1), help="of the adapters (default: 4)")
    plan.add_argument("--quantise", choices=["int8", "nf4"], help="the frozen matrices under adapters")
    plan.add_argument("--no-machines", action="store_true", help="do not look for machines that it fits")

    latent = o.add(
        verbs, "autoencoder", "adapt the latent space to one's own images, or make one for them",
        "scans/ --modality histopathology --new 8 --max-steps 500 --out latent",
    )  # fmt: skip
    latent.add_argument("images", nargs="+", metavar="IMAGE", help="files, DICOM series, or folders of files")
    latent.add_argument("--modality", required=True, help="recipe that reads them, as in the other verbs")
    latent.add_argument(
        "--new", type=o.whole(1), metavar="CHANNELS",
        help="a fresh small autoencoder of that many latent channels, not the model's own",
    )  # fmt: skip
    latent.add_argument("--decoder-only", action="store_true", help="leave the latents where they are")
    latent.add_argument(
        "--adversarial", type=float, default=0.0, help="weight of a discriminator's word (default: 0, none)"
    )
    latent.add_argument("--max-steps", type=o.whole(1), default=200, help="updates (default: 200)")
    latent.add_argument("--lr", type=float, default=1e-4, help="rate (default: 0.0001)")
    latent.add_argument("--side", type=o.whole(8), default=64, help="of a crop in pixels (default: 64)")
    latent.add_argument("--batch", type=o.whole(1), default=8, help="crops an update (default: 8)")

    consolidate = o.add(
        verbs, "consolidate", "turn a checkpoint, also a sharded one, into a folder of weights",
        "'runs/1-fine-tune/checkpoints/step=300.ckpt' --out weights", model=False,
    )  # fmt: skip
    consolidate.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt file or folder")
    consolidate.add_argument(
        "--model", help="bundle or folder to take the tokenizer from (default: that of the run)"
    )
