# SPDX-License-Identifier: Apache-2.0
"""Images <-> latents, behind MONAI's stage-2 verbs.

Every autoencoder here has `encode_stage_2_inputs`, `decode_stage_2_outputs`, `latent_channels`, `downsample`
and a JSON-able `config` from which `autoencoder_from_config` rebuilds it without its weights.
The one thing to know: without a generator, encoding is deterministic (the posterior's mean). The reference
always samples; pass a `generator`, or the `noise` itself, to do as it does.
  B images   C latent channels   H, W pixels   h, w = H, W / downsample   p patch side   K components
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("flux", "patch", "monai")
SIDES = {2: "H, W", 3: "H, W, D"}


class Autoencoder(nn.Module):
    """What all of them share: checks at the door, the draw from the posterior, scale and shift.

    Latents are `scale * (z - shift)`. A subclass gives `encode` (x -> mean and deviation of z) and `decode`
    (z -> x), both unscaled as in MONAI, and the attributes below.
    """

    config: dict[str, Any]  # JSON-able: `autoencoder_from_config(net.config)` rebuilds it without its weights
    latent_channels: int
    downsample: int
    spatial_dims: int = 2
    scale: float = 1.0
    shift: float = 0.0

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, unscaled: x (B, 3, H, W) -> twice (B, C, h, w)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """Image of unscaled latents: z (B, C, h, w) -> (B, 3, H, W), not clamped."""
        raise NotImplementedError

    def encode_stage_2_inputs(
        self, x: Tensor, generator: torch.Generator | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        """Scaled latents of images.

        Args:
            x: (B, 3, H, W) in [-1, 1], or (B, 3, H, W, D) for a 3-D net; sides multiples of `downsample`.
            generator: draws the posterior noise; without it and without `noise` the mean is returned.
            noise: (B, C, h, w) standard normal, used instead of a draw.

        Returns:
            (B, C, h, w) in the dtype of `x`.

        Raises:
            ValueError: wrong number of channels or axes, sides that do not fit, noise of another shape.
        """
        self._check_image(x)
        mean, deviation = self.encode(x)
        if noise is not None and noise.shape != mean.shape:
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, the latents have {tuple(mean.shape)}: draw it so."
            )
        if noise is None and generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)
        z = mean if noise is None else mean + deviation * noise.to(mean)
        return (self.scale * (z - self.shift)).to(x.dtype)

    def decode_stage_2_outputs(self, z: Tensor) -> Tensor:
        """Images of scaled latents: z (B, C, h, w) -> (B, 3, H, W) about [-1, 1], not clamped, in z's dtype.

        Raises:
            ValueError: wrong number of channels or axes.
        """
        channels, sides = self.latent_channels, SIDES[self.spatial_dims].lower()
        if z.dim() != 2 + self.spatial_dims or z.shape[1] != channels:
            raise ValueError(
                f"{type(self).__name__} decodes latents (B, {channels}, {sides}), got {tuple(z.shape)}: "
                f"pass {channels} channels and {2 + self.spatial_dims} axes."
            )
        return self.decode(z / self.scale + self.shift).to(z.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction by way of the mean: (B, 3, H, W) -> (B, 3, H, W)."""
        return self.decode_stage_2_outputs(self.encode_stage_2_inputs(x))

    def _check_image(self, x: Tensor) -> None:
        if x.dim() != 2 + self.spatial_dims or x.shape[1] != 3:
            raise ValueError(
                f"{type(self).__name__} encodes RGB (B, 3, {SIDES[self.spatial_dims]}), got shape "
                f"{tuple(x.shape)}: bring it to 3 channels and {2 + self.spatial_dims} axes."
            )
        if any(side % self.downsample or side == 0 for side in x.shape[2:]):
            raise ValueError(
                f"{type(self).__name__} needs sides that are multiples of {self.downsample}, got "
                f"{tuple(x.shape[2:])}: resize first, for example with FitToGrid."
            )


class FluxAutoencoder(Autoencoder):
    """The FLUX autoencoder, held in a diffusers `AutoencoderKL`; the defaults are the released sizes.

    Args:
        channels: width of the first level.
        multipliers: width of each level in units of `channels`; each level but the last halves the sides.
        num_res_blocks: residual blocks of a level; the decoder has one more.
        latent_channels: C.
        scale, shift: latents are scale * (z - shift).
        norm_groups: groups of every GroupNorm.

    For large images on little memory: `autoencoder.net.enable_tiling()`, `autoencoder.net.enable_slicing()`.
    """

    def __init__(
        self,
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        latent_channels: int = 16,
        scale: float = 0.3611,
        shift: float = 0.1159,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL  # four seconds of import that the nano model does not need

        widths = tuple(channels * m for m in multipliers)
        if any(width % norm_groups for width in widths):
            raise ValueError(
                f"FluxAutoencoder got widths {widths}, each must be a multiple of norm_groups={norm_groups}: "
                "change channels or norm_groups."
            )
        self.latent_channels, self.scale, self.shift = latent_channels, scale, shift
        self.downsample = 2 ** (len(widths) - 1)
        self.config = {
            "kind": "flux", "channels": channels, "multipliers": list(multipliers),
            "num_res_blocks": num_res_blocks, "latent_channels": latent_channels,
            "scale": scale, "shift": shift, "norm_groups": norm_groups,
        }  # fmt: skip
        self.net = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=num_res_blocks,
            latent_channels=latent_channels,
            norm_num_groups=norm_groups,
            sample_size=1024,  # only the tile side, if tiling is switched on
            scaling_factor=scale,
            shift_factor=shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, unscaled, not clamped: x (B, 3, H, W) in [-1, 1] -> twice (B, C, h, w)."""
        moments = self.net.encode(x.to(self.net.dtype), return_dict=False)[0].parameters  # (B, 2C, h, w)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.encode`."""
        mean, log_variance = self.posterior(x)
        return mean, torch.exp(0.5 * log_variance)

    def decode(self, z: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.net.decode(z.to(self.net.dtype), return_dict=False)[0]


class PatchCodec(Autoencoder):
    """A linear codec on p x p patches: K numbers per patch, an orthonormal basis, no network.

    latents = (patch - mean) @ basis / deviation, so a picture comes back exactly up to the components left
    out (with K = p*p*3 all of it). `fit` learns mean and basis by PCA; unfitted, the basis is the cosine
    transform, low frequencies first. Encoding is certain: a generator or noise changes nothing.

    Args:
        patch: p, the side of a patch in pixels; also `downsample`.
        latent_channels: K, at most p*p*3.

    Raises:
        ValueError: K is not in 1..p*p*3.
    """

    mean: Tensor  # (p*p*3,)
    basis: Tensor  # (p*p*3, K), orthonormal columns
    deviation: Tensor  # (K,)

    def __init__(self, patch: int = 8, latent_channels: int = 96) -> None:
        super().__init__()
        size = patch * patch * 3
        if patch < 1 or not 1 <= latent_channels <= size:
            raise ValueError(
                f"PatchCodec(patch={patch}) holds 1 to {size} latent channels, got {latent_channels}: lower "
                "latent_channels or raise patch."
            )
        self.patch, self.downsample, self.latent_channels = patch, patch, latent_channels
        self.config = {"kind": "patch", "patch": patch, "latent_channels": latent_channels}
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", _cosines(patch)[:, :latent_channels].contiguous())
        self.register_buffer("deviation", torch.ones(latent_channels))

    @classmethod
    def fit(
        cls, images: Tensor, patch: int = 8, channels: int = 96, *, whiten: float = 0.0, chunk: int = 64
    ) -> PatchCodec:
        """A codec whose basis holds the `channels` directions of most variance in the patches of `images`.

        Args:
            images: (N, 3, H, W), uint8 or floats in [-1, 1]; sides multiples of `patch`.
            patch: p.
            channels: K.
            whiten: 0 divides all latents by one number, so that distances stay those of pixels; 1 gives each
                component unit variance; between, a power of its deviation. Overall variance is 1 in any case.
            chunk: images read at a time.

        Raises:
            ValueError: wrong shape, sides that do not fit, no image, or values outside [-1, 1].
        """
        codec = cls(patch, channels)
        if len(images) == 0:
            raise ValueError("PatchCodec.fit got no image: pass at least one (3, H, W).")
        codec._check_image(images)
        size = codec.mean.numel()
        count, total, square = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
        for part in images.split(chunk):
            x = part.double() / 127.5 - 1 if part.dtype == torch.uint8 else part.double()
            if not bool((x.abs() <= 1.0 + 1e-3).all()):
                raise ValueError(
                    "PatchCodec.fit got values outside [-1, 1] (or NaN): pass uint8, or floats in [-1, 1]."
                )
            rows = codec._patches(x).flatten(0, 2).cpu()  # (n, p*p*3)
            count, total, square = count + len(rows), total + rows.sum(0), square + rows.T @ rows
        mean = total / count
        variance, directions = torch.linalg.eigh(square / count - torch.outer(mean, mean))  # ascending
        variance, directions = variance.flip(0)[:channels].clamp_min(0), directions.flip(1)[:, :channels]
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()  # the sign of an eigenvector is free: fix it
        if float(variance.sum()) <= 0:
            raise ValueError("PatchCodec.fit got images without any variation: pass real images.")
        shape = variance.clamp_min(1e-12 * float(variance[0])).pow(whiten / 2)  # (K,)
        deviation = shape * (variance / shape**2).mean().sqrt()
        codec.mean.copy_(mean)
        codec.basis.copy_(directions)
        codec.deviation.copy_(deviation)
        return codec

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.encode`; the deviation is zero."""
        rows = self._patches(x.to(self.basis.dtype)) - self.mean  # (B, h, w, p*p*3)
        z = (rows @ self.basis / self.deviation).movedim(-1, 1)  # (B, K, h, w)
        return z, torch.zeros_like(z)

    def decode(self, z: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        rows = (z.to(self.basis.dtype).movedim(1, -1) * self.deviation) @ self.basis.T + self.mean
        x = rows.unflatten(-1, (self.patch, self.patch, 3))  # (B, h, w, p, p, 3)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, 3, h*p, w*p)

    def pixels(self, z: Tensor) -> Tensor:
        """Pixels of latent tokens: (Z, K) -> (Z, p*p, 3), row by row, not clamped."""
        rows = (z * self.deviation.to(z)) @ self.basis.to(z).T + self.mean.to(z)
        return rows.unflatten(-1, (-1, 3))

    def project(self, change: Tensor) -> Tensor:
        """A change of pixels in latents: (Z, p*p, 3) or (Z, p*p*3) -> (Z, K); the mean plays no part."""
        return change.flatten(1) @ self.basis.to(change) / self.deviation.to(change)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, h, w, p*p*3), each row in the order row, column, channel."""
        x = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (B, 3, h, p, w, p)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3)


class MonaiAutoencoder(Autoencoder):
    """Any MONAI `AutoencoderKL`, 2-D or 3-D, in place of the FLUX one.

    A net with one input channel sees the mean of the three; one output channel is repeated to three.

    Args:
        net: a `monai.networks.nets.AutoencoderKL`; its constructor arguments are read off its parts.
        scale, shift: latents are scale * (z - shift); MONAI's usual scale is 1 / std(z) on the training set.

    Raises:
        ValueError: `net` is no AutoencoderKL, or has other than 1 or 3 channels, or is not 2-D or 3-D.
    """

    def __init__(self, net: nn.Module, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        from monai.networks.nets import AutoencoderKL  # seconds of import: only who needs it pays

        if type(net) is not AutoencoderKL:  # a subclass could not be rebuilt from its config
            raise ValueError(
                f"MonaiAutoencoder got a {type(net).__name__}, expected monai.networks.nets.AutoencoderKL: "
                "pass one, or write a subclass of Autoencoder."
            )
        arguments = _arguments(net)
        self.inside, outside = arguments["in_channels"], arguments["out_channels"]
        self.spatial_dims = arguments["spatial_dims"]
        if self.inside not in (1, 3) or outside not in (1, 3) or self.spatial_dims not in (2, 3):
            raise ValueError(
                f"MonaiAutoencoder got a net with {self.inside} input and {outside} output channels in "
                f"{self.spatial_dims}-D, expected 1 or 3 channels in 2-D or 3-D: build the AutoencoderKL so."
            )
        self.net, self.scale, self.shift = net, scale, shift
        self.config = {"kind": "monai", "scale": scale, "shift": shift, "net": arguments}
        self.latent_channels = net.latent_channels
        self.downsample = 2 ** (len(arguments["channels"]) - 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Autoencoder.encode`."""
        if self.inside == 1:
            x = x.mean(dim=1, keepdim=True)
        return self.net.encode(x.to(next(self.net.parameters()).dtype))

    def decode(self, z: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        x = self.net.decode(z.to(next(self.net.parameters()).dtype))
        return x if x.shape[1] == 3 else x.expand(-1, 3, *x.shape[2:])


def autoencoder_from_config(config: dict[str, Any]) -> Autoencoder:
    """The autoencoder that a config describes, with fresh weights.

    Args:
        config: {"kind": "flux" | "patch" | "monai", ...} as `Autoencoder.config` holds it; keys left out
            take the class defaults (for "flux" the released sizes).

    Raises:
        ValueError: unknown kind or argument.
    """
    arguments = {key: value for key, value in config.items() if key != "kind"}
    kind = config.get("kind")
    if kind not in KINDS:
        raise ValueError(f"The autoencoder's kind is {kind!r}, expected one of {', '.join(KINDS)}: mend it.")
    try:
        if kind == "flux":
            return FluxAutoencoder(**arguments)
        if kind == "patch":
            return PatchCodec(**arguments)
        from monai.networks.nets import AutoencoderKL

        return MonaiAutoencoder(AutoencoderKL(**arguments.pop("net")), **arguments)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"An autoencoder of kind {kind!r} cannot be built: {error}; mend its config."
        ) from error


def _cosines(p: int) -> Tensor:
    """The orthonormal cosine transform of a patch, from low to high frequency: (p*p*3, p*p*3)."""

    def transform(n: int) -> Tensor:
        place, wave = torch.arange(n).double(), torch.arange(n).double()
        table = torch.cos(torch.pi / n * (place[:, None] + 0.5) * wave) * (2 / n) ** 0.5
        table[:, 0] /= 2**0.5
        return table  # (place, wave)

    side, colour = transform(p), transform(3)
    full = torch.kron(torch.kron(side, side), colour)
    waves = [(row + column + 2 * hue, hue, row) for row, column, hue in product(range(p), range(p), range(3))]
    return full[:, sorted(range(len(waves)), key=waves.__getitem__)].float()


def _arguments(net: nn.Module) -> dict[str, Any]:
    """Constructor arguments of a MONAI AutoencoderKL, read off its parts."""
    from monai.networks.blocks import SpatialAttentionBlock

    def attentions(part: nn.Module) -> list[nn.Module]:
        return [block for block in part.blocks if isinstance(block, SpatialAttentionBlock)]

    encoder, decoder = net.encoder, net.decoder
    per_level = zip(encoder.num_res_blocks, encoder.attention_levels, strict=True)
    levels = sum(blocks for blocks, attends in per_level if attends)
    block = next(iter(attentions(encoder) + attentions(decoder)), None)
    attention = block.attn if block is not None else None
    return {
        "spatial_dims": encoder.spatial_dims,
        "in_channels": encoder.in_channels,
        "out_channels": decoder.out_channels,
        "num_res_blocks": list(encoder.num_res_blocks),
        "channels": list(encoder.channels),
        "attention_levels": list(encoder.attention_levels),
        "latent_channels": net.latent_channels,
        "norm_num_groups": encoder.norm_num_groups,
        "norm_eps": encoder.norm_eps,
        "with_encoder_nonlocal_attn": len(attentions(encoder)) > levels,
        "with_decoder_nonlocal_attn": len(attentions(decoder)) > levels,
        "use_checkpoint": net.use_checkpoint,
        "use_convtranspose": any("deconv" in name for name, _ in decoder.named_modules()),
        "include_fc": attention.include_fc if attention is not None else True,
        "use_combined_linear": attention.use_combined_linear if attention is not None else False,
        "use_flash_attention": attention.use_flash_attention if attention is not None else False,
    }
