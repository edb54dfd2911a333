# SPDX-License-Identifier: Apache-2.0
"""Trains the autoencoder: the latent space of a modality, with L1, KL and, on request, a discriminator.

The losses are those of latent diffusion (Rombach et al. 2022, arXiv 2112.10752) without the perceptual one,
whose network has seen photographs only. The one thing to know: a trained encoder moves the latents, so what
draws must be trained again; `part="decoder"` leaves them where they are and mends the pictures alone.
  B images   C latent channels   H, W pixels   h, w = H, W / downsample
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from monai_unimedvl.atomic import into_folder
from monai_unimedvl.networks.autoencoder import Autoencoder, MonaiAutoencoder, autoencoder_from_config
from monai_unimedvl.networks.unimedvl import UniMedVL

PARTS = ("both", "decoder")
CONFIG, WEIGHTS = "autoencoder.json", "autoencoder.safetensors"


@dataclass(frozen=True)
class AutoencoderRates:
    """How an autoencoder is trained.

    Args:
        part: "both", or "decoder" alone: latents stay what they are.
        lr, discriminator_lr: of Adam.
        kl: weight of the KL, summed over an image; latent diffusion takes 1e-6.
        adversarial: weight of the discriminator's loss; 0 trains none.
        adversarial_from: updates before the discriminator's word counts.
        clip: norm of the gradient; 0 does not clip.
        seed: of the posterior's noise and of the crops.
    """

    part: str = "both"
    lr: float = 1e-4
    discriminator_lr: float = 5e-4
    kl: float = 1e-6
    adversarial: float = 0.0
    adversarial_from: int = 0
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}, expected one of {', '.join(PARTS)}: use one.")
        if min(self.lr, self.discriminator_lr) <= 0 or min(self.kl, self.adversarial, self.clip) < 0:
            raise ValueError(
                f"AutoencoderRates got lr={self.lr}, discriminator_lr={self.discriminator_lr}, kl={self.kl}, "
                f"adversarial={self.adversarial}, clip={self.clip}, expected rates above 0 and the rest from "
                "0: correct them."
            )


class AutoencoderModule(pl.LightningModule):
    """Lightning around one autoencoder and, where it is asked for, MONAI's patch discriminator.

    Raises:
        ValueError: the autoencoder has no parameters (`PatchCodec` is fitted, not trained), or is not 2-D.
    """

    def __init__(self, autoencoder: Autoencoder, rates: AutoencoderRates | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimisers take turns
        self.autoencoder, self.rates = autoencoder, rates or AutoencoderRates()
        if not list(autoencoder.parameters()) or autoencoder.spatial_dims != 2:
            raise ValueError(
                f"AutoencoderModule got a {autoencoder.spatial_dims}-D {type(autoencoder).__name__} of "
                f"{sum(p.numel() for p in autoencoder.parameters())} parameters, expected a 2-D one that "
                "learns: take a FluxAutoencoder or `small_autoencoder()`; PatchCodec.fit fits the other kind."
            )
        for name, p in autoencoder.named_parameters():
            decodes = name.startswith(("net.decoder", "net.post_quant_conv"))
            p.requires_grad_(decodes or self.rates.part == "both")
        self.discriminator: nn.Module | None = None
        if self.rates.adversarial:
            from monai.losses import PatchAdversarialLoss
            from monai.networks.nets import PatchDiscriminator

            self.discriminator = PatchDiscriminator(
                spatial_dims=2, channels=32, in_channels=3, out_channels=1, num_layers_d=2, norm="INSTANCE"
            )
            self.judge = PatchAdversarialLoss(criterion="least_squares")

    def losses(self, x: Tensor, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """L1 and KL of images, and the pictures that come back: x (B, 3, H, W) in [-1, 1].

        Args:
            noise: (B, C, h, w) standard normal; None takes the posterior's mean.
        """
        mean, deviation = self.autoencoder.encode(x)
        z = mean if noise is None else mean + deviation * noise.to(mean)
        y = self.autoencoder.decode(z)  # (B, 3, H, W)
        variance = deviation.float().square().clamp_min(1e-12)
        kl = 0.5 * (mean.float().square() + variance - variance.log() - 1).flatten(1).sum(1).mean()
        return {"l1": F.l1_loss(y.float(), x.float()), "kl": kl}, y

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One update of the autoencoder, then one of the discriminator."""
        optimizers = self.optimizers()
        first, *second = optimizers if isinstance(optimizers, list) else [optimizers]
        chance = torch.Generator().manual_seed(self.rates.seed * 1_000_003 + batch_idx)
        side = self.autoencoder.downsample
        shape = (len(batch), self.autoencoder.latent_channels, *(n // side for n in batch.shape[2:]))
        noise = torch.randn(shape, generator=chance).to(batch) if self.rates.part == "both" else None
        found, y = self.losses(batch, noise)
        loss = found["l1"] + (self.rates.kl * found["kl"] if self.rates.part == "both" else 0.0)
        if self.discriminator is not None and batch_idx >= self.rates.adversarial_from:
            word = self.discriminator(y.float().contiguous())[-1]
            found["fooled"] = self.judge(word, target_is_real=True, for_discriminator=False)
            loss = loss + self.rates.adversarial * found["fooled"]
        self._update(first, loss)
        if self.discriminator is not None and second:
            made, real = (self.discriminator(x.detach().float())[-1] for x in (y, batch))
            found["judged"] = 0.5 * (
                self.judge(made, target_is_real=False, for_discriminator=True)
                + self.judge(real, target_is_real=True, for_discriminator=True)
            )
            self._update(second[0], found["judged"])
        self.log_dict({**found, "loss": loss}, prog_bar=True, batch_size=len(batch))
        return loss.detach()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for what learns of the autoencoder, and for the discriminator."""
        learning = [p for p in self.autoencoder.parameters() if p.requires_grad]
        found: list[torch.optim.Optimizer] = [torch.optim.Adam(learning, self.rates.lr)]
        if self.discriminator is not None:
            words = self.discriminator.parameters()
            found.append(torch.optim.Adam(words, self.rates.discriminator_lr, betas=(0.5, 0.9)))
        return found

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"The autoencoder's loss is {float(loss)}: lower the rate, or check the images.")
        self.toggle_optimizer(optimizer)
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.rates.clip:
            self.clip_gradients(optimizer, self.rates.clip, "norm")
        optimizer.step()
        self.untoggle_optimizer(optimizer)


class Crops(IterableDataset):
    """Endless batches of square crops, (B, 3, S, S) in [-1, 1].

    Args:
        images: (3, H, W) in [0, 1], of any sizes from S on.
        side: S, a multiple of the autoencoder's `downsample`.

    Raises:
        ValueError: no image, or one that is smaller than a crop.
    """

    def __init__(self, images: Sequence[Tensor], side: int, batch: int = 8, seed: int = 0) -> None:
        super().__init__()
        small = [tuple(x.shape) for x in images if min(x.shape[1:]) < side]
        if not images or small:
            raise ValueError(
                f"Crops of {side} pixels came with {f'an image of {small[0]}' if small else 'no image'}, "
                "expected images at least as large: lower side or give others."
            )
        self.images, self.side, self.batch, self.seed = list(images), side, batch, seed

    def __iter__(self) -> Iterator[Tensor]:
        chance = torch.Generator().manual_seed(self.seed)
        while True:
            chosen = torch.randint(len(self.images), (self.batch,), generator=chance).tolist()
            yield torch.stack([self._crop(self.images[i], chance) for i in chosen]) * 2 - 1

    def _crop(self, image: Tensor, chance: torch.Generator) -> Tensor:
        top, left = (int(torch.randint(n - self.side + 1, (1,), generator=chance)) for n in image.shape[1:])
        return image[:, top : top + self.side, left : left + self.side].as_subclass(Tensor).float()


def train_autoencoder(
    autoencoder: Autoencoder, images: Sequence[Tensor], rates: AutoencoderRates | None = None, *,
    steps: int = 200, side: int = 64, batch: int = 8, device: str = "cpu", precision: str = "32-true",
    out: str | Path | None = None, progress: bool = True,
) -> Autoencoder:  # fmt: skip
    """Train in place on crops of images, and return the same autoencoder, frozen again.

    Args:
        images: (3, H, W) in [0, 1], as a recipe gives them.
        side: of a crop in pixels. batch: crops an update.
        out: folder of the log; None keeps none.

    Raises:
        ValueError: images or sizes that do not fit, or a loss that is no number.
    """
    rates = rates or AutoencoderRates()
    if side % autoencoder.downsample:
        raise ValueError(
            f"Crops of {side} pixels came, expected a multiple of {autoencoder.downsample}: change side."
        )
    module = AutoencoderModule(autoencoder, rates)
    loader = DataLoader(Crops(images, side, batch, rates.seed), batch_size=None)
    trainer = pl.Trainer(
        accelerator=device, devices=1, precision=precision, max_steps=steps * (2 if rates.adversarial else 1),  # type: ignore[arg-type]
        max_epochs=-1, logger=pl.loggers.CSVLogger(out, "log") if out else False, log_every_n_steps=10,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=progress,
    )  # fmt: skip
    torch.manual_seed(rates.seed)
    trainer.fit(module, loader)
    return autoencoder.to("cpu").eval().requires_grad_(False)


@torch.no_grad()
def psnr(autoencoder: Autoencoder, images: Sequence[Tensor]) -> float:
    """Mean PSNR in dB of images (3, H, W) in [0, 1] against what comes back; sides are cut to the grid."""
    found, d = [], autoencoder.downsample
    for image in images:
        h, w = (n // d * d for n in image.shape[1:])
        x = image[None, :, :h, :w].as_subclass(Tensor).float() * 2 - 1
        y = autoencoder(x).clamp(-1, 1)
        found.append(float(-10 * ((x - y) / 2).square().mean().clamp_min(1e-10).log10()))
    return sum(found) / len(found)


@torch.no_grad()
def rescale(autoencoder: Autoencoder, images: Sequence[Tensor], side: int) -> Autoencoder:
    """The same autoencoder with the scale and shift that give latents of `images` mean 0 and deviation 1."""
    batches = iter(Crops(images, side, batch=4))
    means = torch.cat([autoencoder.encode(next(batches))[0].flatten() for _ in range(8)])
    autoencoder.shift, autoencoder.scale = float(means.mean()), 1 / max(float(means.std()), 1e-6)
    autoencoder.config = {**autoencoder.config, "scale": autoencoder.scale, "shift": autoencoder.shift}
    return autoencoder


def small_autoencoder(
    channels: Sequence[int] = (32, 64, 64), latent_channels: int = 8, seed: int = 0
) -> MonaiAutoencoder:
    """A fresh MONAI AutoencoderKL for colour images; sides shrink by 2 for each width but the last."""
    from monai.networks.nets import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AutoencoderKL(
            spatial_dims=2, in_channels=3, out_channels=3, channels=tuple(channels),
            num_res_blocks=(1,) * len(channels), attention_levels=(False,) * len(channels),
            latent_channels=latent_channels, norm_num_groups=min(16, *channels),
            with_encoder_nonlocal_attn=False, with_decoder_nonlocal_attn=False,
        )  # fmt: skip
    return MonaiAutoencoder(net)


def save_autoencoder(autoencoder: Autoencoder, folder: str | Path) -> Path:
    """Write an autoencoder alone: its config and its weights. Whole or not at all; returns the folder."""
    folder = Path(folder)
    content = {name: x.detach().cpu().contiguous() for name, x in autoencoder.state_dict().items()}
    with into_folder(folder, last=(CONFIG,)) as aside:
        save_file(content, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / WEIGHTS).chmod(0o644)
        (aside / CONFIG).write_text(json.dumps(autoencoder.config, indent=2) + "\n", "utf8")
    return folder


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """What `save_autoencoder` wrote, frozen and in eval mode.

    Raises:
        ValueError: a file is missing or damaged, or they do not belong together.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, expected what save_autoencoder wrote: check it.")
    try:
        found = autoencoder_from_config(json.loads((folder / CONFIG).read_text("utf8")))
        found.load_state_dict(load_file(folder / WEIGHTS))
    except (json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds a damaged autoencoder ({said}): copy it again.") from error
    return found.eval().requires_grad_(False)


def put_autoencoder(network: UniMedVL, autoencoder: Autoencoder) -> UniMedVL:
    """The same network with another autoencoder of the same latents.

    Raises:
        ValueError: the latents differ in channels or in pixels a cell.
    """
    old = network.autoencoder
    ours, theirs = (x.latent_channels for x in (old, autoencoder)), (old.downsample, autoencoder.downsample)
    channels = tuple(ours)
    if channels[0] != channels[1] or theirs[0] != theirs[1]:
        raise ValueError(
            f"The autoencoder has {channels[1]} channels and {theirs[1]} pixels a cell, the network expects "
            f"{channels[0]} and {theirs[0]}: train one of these, or build a network around it (from_config)."
        )
    network.autoencoder = autoencoder.requires_grad_(False)
    return network
