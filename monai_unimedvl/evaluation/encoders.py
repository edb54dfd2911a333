# SPDX-License-Identifier: Apache-2.0
"""What looks at images for the distances between sets: any module, or one of the field's usual four.

Nothing is downloaded: a folder or file of weights is given, or `download=True` is said. An encoder carries
its name and the hash of its weights into the report, because a distance without them is no number.
  N images   S side that an encoder takes   D features   H, W pixels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import optional_import
from torch import Tensor, nn

from monai_unimedvl.evaluation.asking import weights_hash
from monai_unimedvl.provenance.facts import sha256

RAD_DINO = "microsoft/rad-dino"
BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
XRAY = "densenet121-res224-all"
INCEPTION = "inception-2015-12-05"
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # mean, std of CLIP
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoder:
    """Images (N, 3, H, W) in [0, 1] -> features (N, D) in float64.

    Args:
        name: model and weights, for the report.
        features: what has been prepared (n, C, S, S) -> (n, D).
        side: S; 0 takes images as they are.
        mean, std: of the colours after resizing; pixels become (x - mean) / std.
        channels: 3, or 1 for grey.
        crop: scale the short side to S and cut the middle out, instead of scaling both sides.
        eight_bit: round to 8 bits after resizing, as pipelines do that pass through PIL.
        weights: sha256 of the weights, or "".
        batch: images at a time.
    """

    name: str
    features: Features
    side: int = 0
    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    channels: int = 3
    crop: bool = False
    eight_bit: bool = False
    weights: str = ""
    batch: int = 32

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D)

        Raises:
            ValueError: another shape, or pixels that are no numbers.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name} got images of shape {tuple(images.shape)}, expected (N, 3, H, W) of one size: "
                "resize them, and repeat a grey channel three times."
            )
        found = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch].float()
            if not bool(torch.isfinite(part).all()):
                row = start + int((~torch.isfinite(part)).flatten(1).any(1).nonzero()[0, 0])
                raise ValueError(f"Image {row} has pixels that are no numbers: draw or read it again.")
            found.append(self.features(self.prepare(part)).flatten(1).double().cpu())
        return torch.cat(found)

    def prepare(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [0, 1] -> (n, C, S, S) as the network takes it."""
        height, width = images.shape[-2:]
        if self.side:
            short = self.side / min(height, width)
            size = (round(height * short), round(width * short)) if self.crop else (self.side, self.side)
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
            top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
            images = images[..., top : top + self.side, left : left + self.side]
        if self.eight_bit:
            images = (images * 255).round() / 255
        if self.channels == 1:
            images = images.mean(1, keepdim=True)
        shape = (1, self.channels, 1, 1)
        mean, std = (torch.tensor(list(x)[: self.channels]).view(shape) for x in (self.mean, self.std))
        return (images - mean.to(images)) / std.to(images)


def of_module(network: nn.Module, name: str, **options: Any) -> Encoder:
    """Any module (n, C, S, S) -> (n, D) as an encoder; options are those of `Encoder`."""
    return Encoder(name, network.eval(), weights=weights_hash(network), **options)


def inception(path: str | Path) -> Encoder:
    """The Inception network of the Frechet inception distance, with the sizes and scales of clean-fid.

    Args:
        path: the TorchScript file inception-2015-12-05.pt, which clean-fid and torch-fidelity use.

    Raises:
        ValueError: no such file.
    """
    network = torch.jit.load(str(_there(path, f"the TorchScript file {INCEPTION}.pt")), map_location="cpu")
    layers = network.eval().layers
    grey, span = (128 / 255,) * 3, (128 / 255,) * 3  # (8-bit - 128) / 128
    return Encoder(
        f"Inception {INCEPTION}, resized as clean-fid", layers, 299, grey, span, eight_bit=True,
        weights=sha256(path),
    )  # fmt: skip


def rad_dino(folder: str | Path = RAD_DINO, *, download: bool = False) -> Encoder:
    """RadDINO, or any folder of a DINOv2 in transformers' layout: the class token of radiographs.

    Args:
        folder: of config.json and model.safetensors; a name of the Hub needs `download`, unless it is cached.

    Raises:
        ValueError: the weights are not there, or are of another model.
    """
    from transformers import AutoModel

    network = _pretrained(AutoModel, "dinov2", folder, download)
    grey, span = (0.5307,) * 3, (0.2583,) * 3  # preprocessor_config.json of microsoft/rad-dino
    return Encoder(
        f"RadDINO {_last(folder)}", lambda x: network(pixel_values=x).last_hidden_state[:, 0],
        network.config.image_size, grey, span, crop=True, weights=weights_hash(network),
    )  # fmt: skip


def xray(folder: str | Path, name: str = XRAY, *, download: bool = False) -> Encoder:
    """A torchxrayvision DenseNet: 1024 features of radiographs.

    Args:
        folder: where torchxrayvision keeps its weights, or is to put them with `download`.

    Raises:
        ValueError: torchxrayvision or its weights are not there.
    """
    package, found = optional_import("torchxrayvision")
    if not found:
        raise ValueError("xray() needs torchxrayvision, which is not here: `pip install torchxrayvision`.")
    if not download:
        _there(folder, f"a folder with the weights {name}")
        if not any(Path(folder).glob("*.pt")):
            raise ValueError(f"{folder} holds no .pt file: put {name} there, or say download=True.")
    network = package.models.DenseNet(weights=name, cache_dir=str(folder)).eval()
    half, span = (0.5,), (0.5 / 1024,)  # to [-1024, 1024]
    return Encoder(
        f"torchxrayvision {name}",
        network.features2,
        224,
        half,
        span,
        channels=1,
        weights=weights_hash(network),
    )


@dataclass(frozen=True)
class ImageText:
    """A pair of encoders into one space, for the image-text score.

    Args:
        images: (N, 3, H, W) in [0, 1] -> (N, D).
        texts: N texts -> (N, D).
    """

    name: str
    images: Callable[[Tensor], Tensor]
    texts: Callable[[Sequence[str]], Tensor]


def image_text_scores(pair: ImageText, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
    """The cosine of each image and its text, raw and as (1 + cos) / 2, (N,) each.

    Papers print either without saying which; the second is higher by design and says nothing more.

    Raises:
        ValueError: not one text an image.
    """
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} images came with {len(texts)} texts: give one text for each image.")
    seen, read = (F.normalize(x.double(), dim=1) for x in (pair.images(images), pair.texts(texts)))
    cosine = (seen * read).sum(1).clamp(-1, 1)
    return {"cosine": cosine, "(1 + cosine) / 2": (1 + cosine) / 2}


def clip(folder: str | Path, *, download: bool = False) -> ImageText:
    """A CLIP in transformers' layout.

    Raises:
        ValueError: the weights are not there, or are of another model.
    """
    from transformers import AutoTokenizer, CLIPModel

    network = _pretrained(CLIPModel, "clip", folder, download)
    here = Path(folder)  # without these files transformers makes a tokenizer that knows no word
    if here.is_dir() and not any((here / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"{folder} holds no tokenizer, expected tokenizer.json or vocab.json: copy the whole model there."
        )
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=not download)
    side = network.config.vision_config.image_size
    longest = network.config.text_config.max_position_embeddings

    def see(x: Tensor) -> Tensor:
        return network.visual_projection(network.vision_model(pixel_values=x).pooler_output)

    @torch.no_grad()
    def read(texts: Sequence[str]) -> Tensor:
        asked = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        found: Tensor = network.text_projection(network.text_model(**asked).pooler_output)
        return found

    eyes = Encoder(f"CLIP {_last(folder)}", see, side, *OPENAI, crop=True, weights=weights_hash(network))
    return ImageText(f"CLIP {_last(folder)}", eyes, read)


def biomedclip(folder: str | Path | None = None, *, download: bool = False) -> ImageText:
    """BiomedCLIP through open_clip: 256 tokens of text, 512 features.

    Args:
        folder: a copy of the model's repository; None takes it from the Hub, which needs `download`.

    Raises:
        ValueError: open_clip or the weights are not there.
    """
    package, found = optional_import("open_clip")
    if not found:
        raise ValueError(
            "biomedclip() needs open_clip, which brings torchvision: `pip install open_clip_torch` into an "
            "environment whose torchvision fits its torch."
        )
    if folder is None and not download:
        raise ValueError(
            f"biomedclip() got no folder: copy {BIOMEDCLIP} to one, or say download=True to fetch it."
        )
    if folder is not None:
        _there(folder, "a copy of the model's repository")
    name = f"hf-hub:{BIOMEDCLIP}" if folder is None else f"local-dir:{folder}"
    network, _ = package.create_model_from_pretrained(name)
    tokenizer = package.get_tokenizer(name)
    eyes = Encoder(
        "BiomedCLIP", network.eval().encode_image, 224, *OPENAI, crop=True, weights=weights_hash(network)
    )

    @torch.no_grad()
    def read(texts: Sequence[str]) -> Tensor:
        said: Tensor = network.encode_text(tokenizer(list(texts), context_length=256))
        return said

    return ImageText(BIOMEDCLIP, eyes, read)


def _pretrained(kind: Any, wanted: str, folder: str | Path, download: bool) -> Any:
    """A network of transformers, by the `model_type` of its config: weights of another type would be left at
    random with no more than a warning.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(str(folder), local_files_only=not download).model_type
        if found != wanted:
            raise ValueError(f"{folder} holds a model of type {found}, expected {wanted}: name its folder.")
        return kind.from_pretrained(str(folder), local_files_only=not download).eval()
    except OSError as error:
        raise ValueError(
            f"{folder} has no weights here, and nothing is downloaded unasked: give a folder that holds "
            "config.json and model.safetensors, or say download=True."
        ) from error


def _there(path: str | Path, what: str) -> Path:
    if not Path(path).exists():
        raise ValueError(f"{path} is not there, expected {what}: nothing is downloaded, so copy it there.")
    return Path(path)


def _last(folder: str | Path) -> str:
    """The last part of a path: no machine's folders go into a report."""
    return Path(folder).name
