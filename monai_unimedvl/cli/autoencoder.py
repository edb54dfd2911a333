# SPDX-License-Identifier: Apache-2.0
"""`unimedvl autoencoder`: adapt the latent space to one's own images, or make one for them."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

from monai_unimedvl.cli.command import Result


def autoencoder(options: Namespace) -> Result:
    """Train a model's autoencoder, or a new small one, on images; say what it was and is worth."""
    from torch import Tensor

    from monai_unimedvl import bundle, weights
    from monai_unimedvl.training import autoencoder as room
    from monai_unimedvl.transforms import recipe
    from monai_unimedvl.transforms.dicom import holds_dicom

    if not options.out:
        raise ValueError("--out is missing, expected a folder for the result: add it.")
    read = recipe(options.modality)
    images: list[Tensor] = []
    for path in map(Path, options.images):
        files = [path] if path.is_file() or not path.is_dir() else sorted(path.iterdir())
        series = path.is_dir() and holds_dicom(path)
        for file in [path] if series else [file for file in files if not file.name.startswith(".")]:
            images += read(file)
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} image came, expected 2 at least: every fifth is held out to judge by."
        )
    held_out, learned = images[::5], [x for n, x in enumerate(images) if n % 5]
    network = tokenizer = None
    if options.new:
        found = room.small_autoencoder(latent_channels=options.new, seed=options.seed)
    else:
        network, tokenizer = bundle.load(options.model)
        found = network.autoencoder
        if not list(found.parameters()):
            raise ValueError(
                f"{options.model} has a {type(found).__name__}, which is fitted and not trained, expected an "
                "autoencoder that learns: add --new 8 for a fresh one, or another --model."
            )
    rates = room.AutoencoderRates(
        part="decoder" if options.decoder_only else "both", lr=options.lr,
        adversarial=options.adversarial, seed=options.seed,
    )  # fmt: skip
    before = room.psnr(found, held_out)
    if not options.quiet:
        print(f"{len(learned)} images to learn from, {len(held_out)} held out", file=sys.stderr)
    with redirect_stdout(sys.stderr):  # the bar of Lightning
        room.train_autoencoder(
            found, learned, rates, steps=options.max_steps, side=options.side, batch=options.batch,
            device=options.device, out=options.out, progress=not options.quiet,
        )  # fmt: skip
    after = room.psnr(found, held_out)
    lines = [f"held-out images come back at {after:.2f} dB, before at {before:.2f} dB"]
    folder = Path(options.out) / "weights"
    if network is None:
        room.rescale(found, learned, options.side)
        room.save_autoencoder(found, folder)
        lines.append(f"wrote {folder}: build a network around it, its latents are its own")
    else:
        weights.save(room.put_autoencoder(network, found), tokenizer, folder)
        lines.append(f"wrote {folder}: the model with this autoencoder")
        if not options.decoder_only:
            lines.append("Its latents have moved: train what draws again, or use --decoder-only.")
    return lines, {"psnr_before": before, "psnr_after": after, "outputs": [str(folder)]}
