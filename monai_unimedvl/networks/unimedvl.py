# SPDX-License-Identifier: Apache-2.0
"""UniMedVL (arXiv 2510.15710): one network that reads and draws. Sizes are plain functions at the end.

L tokens   D hidden size   V view patches   Z latent tokens   C numbers a latent token   q latent patch
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.decoder import Decoder, KVCache
from monai_unimedvl.networks.details import Details
from monai_unimedvl.networks.layers import MLP, TimeEmbed, grid_table, patchify, unpatchify
from monai_unimedvl.networks.starts import based
from monai_unimedvl.networks.tones import Tones
from monai_unimedvl.networks.vision import Vision
from monai_unimedvl.sequence import Canvas, PackedSequence, Segment

PREDICTIONS = ("velocity", "image")
SMALLEST_TIME = 0.05  # below it an image prediction says too little about the velocity


class Prediction(NamedTuple):
    """States (L, D) after the final norm, and the flow velocity (Z, C) of every latent token, or None."""

    hidden: Tensor
    velocity: Tensor | None


class UniMedVL(nn.Module):
    """The unified network over one packed sequence.

    Args:
        decoder: the transformer with two experts.
        vision: encoder of images to understand; None for a text or drawing-only network.
        autoencoder: images (B, 3, H, W) in [-1, 1] <-> latents, behind MONAI's stage-2 verbs
            (`encode_stage_2_inputs`, `decode_stage_2_outputs`, `latent_channels`, `downsample`, `config`);
            never trained here.
        latent_patch: q, latent cells a side that make one token.
        latent_side: side of the fixed position table of latent tokens; the largest canvas.
        table_base, table_scale: wavelength and amplitude of the fixed position tables.
        prediction: what the head says: "velocity" as released, or "image": a correction to a first guess of
            the image, turned into a velocity here (see `_from_image`).
        tones: levels of the curve through which an edit may send its source (see `Tones`); 0 for none.
        details: features of the U-Net over an edit's source (see `Details`); 0 for none.
        strokes: features of that over the first guess of a drawing that has no source; 0 for none.
        timestep_shift: shift of training times.
        grids: sizes that images are fitted to, {"view": [longest side, shortest side, stride], ...} and
            the same for "canvas", in pixels; None takes the released rules, 980/378 and 1024/512, as far as
            the position tables reach.
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: Vision | None,
        autoencoder: nn.Module,
        *,
        latent_patch: int = 2,
        latent_side: int = 64,
        table_base: float = 10000.0,
        table_scale: float = 1.0,
        prediction: str = "velocity",
        tones: int = 0,
        details: int = 0,
        strokes: int = 0,
        timestep_shift: float = 1.0,
        grids: dict[str, list[int]] | None = None,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"UniMedVL got prediction={prediction!r}, expected 'velocity' or 'image': use one."
            )
        linear = latent_patch == 1 and isinstance(autoencoder, PatchCodec)
        if (tones or details or strokes) and not (linear and prediction == "image"):
            raise ValueError(
                f"UniMedVL got tones={tones}, details={details} and strokes={strokes}, expected them with "
                "prediction='image', latent_patch=1 and a PatchCodec: set all to 0, or these."
            )
        hidden_size = decoder.embed.embedding_dim
        self.decoder, self.vision, self.autoencoder = decoder, vision, autoencoder
        self.latent_patch, self.latent_side = latent_patch, latent_side
        self.table_base, self.table_scale = table_base, table_scale
        self.prediction, self.timestep_shift = prediction, timestep_shift
        self.latent_size = latent_patch * latent_patch * autoencoder.latent_channels  # C
        self.connector: MLP | None = None
        if vision is not None:
            self.connector = MLP(vision.norm.weight.shape[0], hidden_size, hidden_size)
            views = grid_table(vision.grid_side, hidden_size, table_base, table_scale)
            self.register_buffer("view_table", views)
        self.register_buffer("latent_table", grid_table(latent_side, hidden_size, table_base, table_scale))
        self.time_embed = TimeEmbed(hidden_size)
        self.latent_in = nn.Linear(self.latent_size, hidden_size)
        self.latent_out = nn.Linear(hidden_size, self.latent_size)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        if prediction == "image":
            self.latent_gate = nn.Linear(hidden_size, self.latent_size)
            nn.init.zeros_(self.latent_gate.weight)
            nn.init.zeros_(self.latent_gate.bias)
            self.tones = Tones(hidden_size, tones) if tones else None
            self.details = Details(hidden_size, details) if details else None
            self.strokes = Details(hidden_size, strokes) if strokes else None
            self.register_buffer("latent_variance", torch.ones(self.latent_size))
        autoencoder.requires_grad_(False)
        self.grids = {**self._released_grids(), **(grids or {})}

    def forward(self, seq: PackedSequence, cache: KVCache | None = None, keep: bool = True) -> Prediction:
        """Read a pack.

        Args:
            cache: the past of the samples, by sample number; read, and written unless `keep` is False.

        Raises:
            ValueError: a plain tensor came, as from MONAI's inferers.
        """
        if isinstance(seq, Tensor):
            raise ValueError(
                f"UniMedVL got a tensor of shape {tuple(seq.shape)}, expected a pack of words and images: "
                "wrap the network in TensorPath, which takes images and gives images."
            )
        x = self.decoder(self.embed(seq), seq.plan, cache, keep)  # (L, D)
        if seq.latents is None:
            return Prediction(x, None)
        h = x[seq.latent_at]  # (Z, D)
        velocity = self.latent_out(h) if self.prediction == "velocity" else self._from_image(h, seq)
        return Prediction(x, velocity)

    def embed(self, seq: PackedSequence) -> Tensor:
        """Tokens of a pack as vectors (L, D) in memory order."""
        words = self.decoder.embed(seq.text_ids)  # (T, D)
        if seq.patches is None and seq.latents is None:
            return words
        x = words.new_zeros(len(seq), words.shape[1]).index_copy(0, seq.text_at, words)
        if seq.patches is not None:
            x = x.index_copy(0, seq.view_at, self.views(seq))
        if seq.latents is not None:
            x = x.index_copy(0, seq.latent_at, self.canvases(seq))
        return x

    def views(self, seq: PackedSequence) -> Tensor:
        """View tokens (V, D): vision encoder, connector, fixed position."""
        if self.vision is None or self.connector is None:
            raise ValueError(
                "The prompt has an image, but this network no vision encoder: load one that has."
            )
        position = self._cell(self.view_table, seq.view_cells, self.vision.grid_side)
        patches = seq.patches.to(self.vision.patch.weight.dtype)  # type: ignore[union-attr]
        seen = self.vision(patches, seq.view_cells, seq.view_lengths)
        if seq.view_kept is not None:
            seen, position = seen[seq.view_kept], position[seq.view_kept]
        return self.connector(seen) + position

    def canvases(self, seq: PackedSequence) -> Tensor:
        """Latent tokens (Z, D): projection, flow time, fixed position."""
        latents = seq.latents.to(self.latent_in.weight.dtype)  # type: ignore[union-attr]
        position = self._cell(self.latent_table, seq.latent_cells, self.latent_side)
        return self.latent_in(latents) + self.time_embed(seq.times) + position

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)"""
        return self.decoder.logits(hidden)

    @property
    def canvas_stride(self) -> int:
        """Pixels a side of one latent token."""
        return self.latent_patch * self.autoencoder.downsample

    @torch.no_grad()
    def encode(
        self, samples: Sequence[Sequence[Segment]], generator: torch.Generator | None = None
    ) -> list[list[Segment]]:
        """The samples with every canvas's image encoded to latents.

        Images of one size are encoded together, never padded: padding would change the latents of the
        smaller ones, as it does in the reference's training.

        Args:
            generator: samples the posterior, as the reference always does; None takes its mean.
        """
        encoded = [list(segments) for segments in samples]
        waiting: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for s, segments in enumerate(encoded):
            for i, segment in enumerate(segments):
                if isinstance(segment, Canvas) and segment.latents is None and not segment.dropped:
                    if segment.image is None:
                        raise ValueError(
                            "encode got a Canvas without image and latents: give it one of them."
                        )
                    waiting.setdefault(tuple(segment.image.shape), []).append((s, i))
        for places in waiting.values():
            images = torch.stack([encoded[s][i].image for s, i in places])  # type: ignore[union-attr]
            latents = self.autoencoder.encode_stage_2_inputs(images.to(self._device), generator=generator)
            for (s, i), latent in zip(places, latents, strict=True):
                encoded[s][i] = replace(encoded[s][i], latents=patchify(latent, self.latent_patch))  # type: ignore[call-arg]
        if self.prediction == "image":
            return [based(segments) for segments in encoded]
        return encoded

    @torch.no_grad()
    def decode(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latent tokens (h*w, C) -> image (3, H, W) in [0, 1]"""
        latent = unpatchify(latents, grid, self.latent_patch).unsqueeze(0)
        image = self.autoencoder.decode_stage_2_outputs(latent)[0]
        return (image * 0.5 + 0.5).clamp(0, 1)

    @property
    def config(self) -> dict[str, Any]:
        """Sizes as plain values: `from_config(network.config)` builds the same network, untrained."""
        return {
            "decoder": dict(self.decoder.config),
            "vision": None if self.vision is None else dict(self.vision.config),
            "autoencoder": dict(self.autoencoder.config),
            "latent_patch": self.latent_patch,
            "latent_side": self.latent_side,
            "table_base": self.table_base,
            "table_scale": self.table_scale,
            "prediction": self.prediction,
            "tones": 0 if self.prediction != "image" or self.tones is None else self.tones.levels,
            "details": 0 if self.prediction != "image" or self.details is None else self.details.features,
            "strokes": 0 if self.prediction != "image" or self.strokes is None else self.strokes.features,
            "timestep_shift": self.timestep_shift,
            "grids": {name: list(rule) for name, rule in self.grids.items()},
        }

    @property
    def _device(self) -> torch.device:
        return self.decoder.embed.weight.device

    def _released_grids(self) -> dict[str, list[int]]:
        """Longest side, shortest side and stride in pixels, as the reference resizes images."""
        widest = self.latent_side * self.canvas_stride
        grids = {"canvas": [min(1024, widest), min(512, widest), self.canvas_stride]}
        if self.vision is not None:
            widest = self.vision.grid_side * self.vision.patch_size
            grids["view"] = [min(980, widest), min(378, widest), self.vision.patch_size]
        return grids

    def _cell(self, table: Tensor, cells: Tensor, side: int) -> Tensor:
        if len(cells) and int(cells.max()) >= side:
            raise ValueError(
                f"An image has {int(cells.max()) + 1} tokens a side, expected {side} at most: shrink it."
            )
        return table[cells[:, 0] * side + cells[:, 1]]

    def _from_image(self, h: Tensor, seq: PackedSequence, grid: tuple[int, int] | None = None) -> Tensor:
        """The velocity (Z, C) that leads to the image this network predicts from h (Z, D).

        The head corrects a guess: the best linear one from x_t alone (Wiener's, for independent latents of
        `latent_variance`), or, as far as a gate opens, the base of the canvas: an edit begins at its source,
        recoloured by `tones` and redrawn by `details`; what begins from noise alone is redrawn by `strokes`.

        Args:
            grid: rows and columns of all drawings, where they are of one size and all edits, or none is;
                None looks in the pack.
        """
        noisy = seq.latents if seq.latents.dtype == torch.float64 else seq.latents.float()  # type: ignore
        t = seq.times.unsqueeze(-1).to(noisy)
        rest, variance = 1 - t, self.latent_variance.to(noisy)  # type: ignore[operator]
        guess = rest * variance / (rest**2 * variance + t**2 + 1e-6) * noisy
        if self.strokes is not None and (grid is None or seq.bases is None):
            fresh = {grid: None} if grid else seq.fresh
            guess = self.strokes.over(guess, h, guess, self.autoencoder, fresh)
        if seq.bases is not None:
            source = seq.bases.to(noisy)
            gate = self.latent_gate(h).to(noisy).sigmoid() * seq.based.unsqueeze(-1)
            guess = guess + gate * (source - guess)
            if self.tones is not None:
                guess = guess + self.tones(h, source, self.autoencoder) * seq.based.unsqueeze(-1)
            if self.details is not None:
                edits = {grid: None} if grid else seq.edits
                guess = self.details.over(guess, h, source, self.autoencoder, edits)
        image = guess + self.latent_out(h).to(noisy)
        return (noisy - image) / t.clamp(min=SMALLEST_TIME)


def from_config(config: dict[str, Any]) -> UniMedVL:
    """An untrained network of the given sizes; the shape of `config` is that of `UniMedVL.config`."""
    from monai_unimedvl.networks.autoencoder import autoencoder_from_config

    config = dict(config)
    decoder, vision = Decoder(**config.pop("decoder")), config.pop("vision", None)
    autoencoder = autoencoder_from_config(config.pop("autoencoder"))
    return UniMedVL(decoder, Vision(**vision) if vision else None, autoencoder, **config)


def released() -> UniMedVL:
    """The released 14B network: Qwen2.5-7B twice, SigLIP so400m, FLUX VAE."""
    return from_config(
        {
            "decoder": {
                "vocab_size": 152064, "hidden_size": 3584, "mlp_dim": 18944, "num_layers": 28,
                "num_heads": 28, "num_kv_heads": 4,
            },
            "vision": {"hidden_size": 1152, "mlp_dim": 4304, "num_layers": 26, "num_heads": 16},
            "autoencoder": {"kind": "flux"},
        }
    )  # fmt: skip


def nano(
    autoencoder: nn.Module, *, vocab_size: int, hidden_size: int = 160, num_layers: int = 4,
    details: int = 24, strokes: int = 0,
) -> UniMedVL:  # fmt: skip
    """A network of a few million parameters for 64x64 images, initialised to learn in minutes on a CPU.

    What differs from the released shape, each because it learned faster so: the head predicts the image,
    not the velocity; position tables with short wavelengths; keys start equal to queries, so that tokens of
    one place attend to each other at once; image content and position code start at the same size.

    Args:
        details, strokes: see `UniMedVL`; for a `PatchCodec` only.
    """
    heads, vision_size, linear = hidden_size // 32, hidden_size, isinstance(autoencoder, PatchCodec)
    decoder = Decoder(
        vocab_size, hidden_size, 3 * hidden_size, num_layers, heads, heads,
        rope_theta=1e4, tied=True, max_context=1024,
    )  # fmt: skip
    vision = Vision(vision_size, 3 * vision_size, 3, heads, patch_size=8, grid_side=16)
    network = UniMedVL(
        decoder, vision, autoencoder, latent_patch=1, latent_side=16, table_base=50.0, table_scale=1.0,
        prediction="image", tones=16 * linear, details=details * linear, strokes=strokes * linear,
        timestep_shift=2.0,
        grids={"view": [64, 64, 8], "canvas": [64, 64, autoencoder.downsample]},
    )  # fmt: skip
    nn.init.normal_(decoder.embed.weight, std=0.05)
    for layer in decoder.layers:
        for expert in ("understanding", "generation"):
            q, k = getattr(layer.attention.q, expert), getattr(layer.attention.k, expert)
            k.weight.data.copy_(q.weight.data)
        for residual in _residual_outputs(layer):
            residual.weight.data.mul_((2 * num_layers) ** -0.5)
    first, second = network.connector.fc1, network.connector.fc2  # type: ignore[union-attr]
    nn.init.normal_(first.weight, std=vision_size**-0.5)
    nn.init.normal_(second.weight, std=(0.425 * hidden_size) ** -0.5)  # E[gelu(z)^2] = 0.425
    nn.init.normal_(vision.position.weight, std=0.02)
    vision.position.weight.data += grid_table(vision.grid_side, vision_size, 50.0, 0.7)
    return network


def _residual_outputs(layer: nn.Module) -> Iterable[nn.Linear]:
    for expert in ("understanding", "generation"):
        yield getattr(layer.attention.out, expert)
        yield getattr(layer.mlp, expert).down
