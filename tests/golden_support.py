# SPDX-License-Identifier: Apache-2.0
"""The golden numbers as tests use them. Every size comes from the files, so another set fits too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Context, Sampling, flow_steps, words
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Canvas, Marks, PackedSequence, Segment, Text, View
from monai_unimedvl.weights.upstream import autoencoder_to_ours, read_config, to_ours


class Golden:
    """One set of golden numbers.

    Args:
        folder: holds the config files, weights and cases of golden/README.md.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: dict[str, Any] = json.loads((folder / "cases.json").read_text("utf8"))
        self.arrays = load_file(folder / "cases.safetensors")
        self.model = json.loads((folder / "bagel_config.json").read_text("utf8"))
        ids = self.model["new_token_ids"]
        self.marks = Marks(
            ids["bos_token_id"], ids["eos_token_id"], ids["start_of_image"], ids["end_of_image"]
        )
        self.tolerance = self.cases["tolerance"]["float_abs"]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def build(self) -> UniMedVL:
        """A fresh network with the golden weights, in float32 and eval mode."""
        network = from_config(read_config(self.folder))
        weights = to_ours(load_file(self.folder / "model.safetensors"))
        weights |= {
            f"autoencoder.{name}": w
            for name, w in autoencoder_to_ours(load_file(self.folder / "ae.safetensors")).items()
        }
        network.load_state_dict(weights)
        return network.eval()

    @property
    def network(self) -> UniMedVL:
        """The network that tests share: nobody may change it."""
        return _shared(self)

    def check(self, name: str, actual: Tensor, tolerance: float | None = None) -> None:
        """Float arrays within the tolerance of the set, others exactly."""
        wanted = self[name]
        atol = (tolerance or self.tolerance) if wanted.is_floating_point() else 0
        assert_close(actual.to(wanted.dtype), wanted, atol=atol, rtol=0, msg=lambda m: f"{name}: {m}")

    def text(self, name: str, **options: Any) -> Text:
        return Text(self[name], **options)

    def view(self, name: str) -> View:
        """An image (3, H, W), as the reference's transform leaves it, to understand."""
        image, p = self[name], self.network.vision.patch_size
        return View(patchify(image, p), (image.shape[1] // p, image.shape[2] // p))

    def guidances(self, case: str) -> Iterator[tuple[str, Guidance]]:
        """Name of the expected latents, and guidance, of each sampler run of a case."""
        for run in self.cases[case]["runs"]:
            yield (
                run["output"],
                Guidance(
                    text=run["cfg_text_scale"],
                    image=run["cfg_img_scale"],
                    interval=tuple(run["cfg_interval"]),
                    renorm=run["cfg_renorm_type"],
                    renorm_min=run["cfg_renorm_min"],
                ),
            )

    def context(self, samples: int, network: UniMedVL | None = None) -> Context:
        """An empty context. The golden cases are ids: marks are all that is needed of a tokenizer."""
        marked: Any = SimpleNamespace(tokenizer=SimpleNamespace(marks=self.marks))
        return Context(network or self.network, marked, samples=samples)

    def edited(self) -> list[Segment]:
        """The prompt of the edit case: the condition's latents, the same image to understand, words."""
        q = self.model["latent_patch_size"]
        latent = self["edit.cond_latent"][0]
        grid = (latent.shape[1] // q, latent.shape[2] // q)
        return [Canvas(grid, patchify(latent, q)), self.view("edit.vit_img"), self.text("edit.text_ids")]

    def check_answer(self, case: str, network: UniMedVL | None = None) -> None:
        """The words of the case "text", "vqa" or "edit", one after the other."""
        prompts: dict[str, Callable[[], list[Segment]]] = {
            "text": lambda: [self.text("text.ids")],
            "vqa": lambda: [self.view("vit.img0"), self.view("vit.img1"), self.text("vqa.text_ids")],
            "edit": self.edited,
        }
        context = self.context(1, network)
        context.read([prompts[case]()])
        logits = self[f"{case}.decode_logits"]
        said = [word for (word,) in words(context, Sampling(max_new_tokens=len(logits)))]
        ids = [word.id for word in said if word.id is not None]
        assert [self.marks.text_start, *ids][: len(logits)] == self[f"{case}.decode_ids"].tolist()
        wanted = logits.log_softmax(-1).amax(-1)
        assert_close(torch.tensor([word.logprob for word in said]), wanted, atol=self.tolerance, rtol=0)

    def check_batch(self, network: UniMedVL | None = None) -> None:
        """The two answers of the case "batch", decoded together."""
        context = self.context(2, network)
        context.read([[self.text("batch.ids0")], [self.text("batch.ids1")]])
        steps = len(self["batch.decode_ids"])
        said: list[list[int | None]] = [[self.marks.text_start], [self.marks.text_start]]
        for spoken in words(context, Sampling(max_new_tokens=steps)):
            for word in spoken:
                said[word.sample].append(word.id)
        assert torch.equal(torch.tensor([ids[:steps] for ids in said]).T, self["batch.decode_ids"])

    def check_drawings(self, case: str, network: UniMedVL | None = None, every: int = 1) -> None:
        """The latents of the sampler runs of the case "t2i" or "edit", or of every so manieth."""
        settings = self.cases[case]
        if case == "t2i":
            samples = [[self.text("t2i.text_ids")], [], [self.text("t2i.text_ids")]]  # as the reference
        else:
            samples = [self.edited(), self.edited()[:2], self.edited()[2:]]
        context = self.context(3, network)
        context.read(samples)
        stride = context.network.canvas_stride
        height, width = (settings.get(name) or settings[f"target_{name}"] for name in ("height", "width"))
        for name, guidance in list(self.guidances(case))[::every]:
            loop = flow_steps(
                context, [(height // stride, width // stride)], guidance, noise=[self[f"{case}.noise"]],
                steps=settings["num_timesteps"] - 1, shift=settings["timestep_shift"],
            )  # fmt: skip
            *_, (t, (latents,)) = loop
            assert t == 0
            self.check(name, latents)

    def train_samples(self, dropped: tuple[str, ...] = ()) -> list[list[Segment]]:
        """The samples of the train case; conditions of the `dropped` types are left out."""
        views, canvases = iter(self._train_views()), iter(self._train_latents())
        texts = (name for name in sorted(self.arrays) if name.startswith("train.text"))
        samples: list[list[Segment]] = []
        for items in self.cases["train"]["samples"]:
            samples.append([])
            for item in items:
                drop, loss = bool(item["enable_cfg"]) and item["type"] in dropped, bool(item["loss"])
                if item["type"] == "text":
                    samples[-1].append(self.text(next(texts), loss=loss, dropped=drop))
                elif item["type"] == "vit_image":
                    samples[-1].append(View(*next(views), dropped=drop))
                else:
                    grid, latents = next(canvases)
                    samples[-1].append(Canvas(grid, latents, noisy=loss, dropped=drop))
        return samples

    def _train_views(self) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        lengths = self.cases["train"]["vit_token_seqlens"]
        side = self.model["vit_max_num_patch_per_side"]
        ids = self["train.packed_vit_position_ids"].split(lengths)
        for tokens, place in zip(self["train.packed_vit_tokens"].split(lengths), ids, strict=True):
            yield tokens, (int(place.max()) // side + 1, int(place.max()) % side + 1)

    def _train_latents(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        q = self.model["latent_patch_size"]
        shapes = self.cases["train"]["patchified_vae_latent_shapes"]
        for (h, w), latent in zip(shapes, self["train.padded_latent"], strict=True):
            yield (h, w), patchify(latent[:, : h * q, : w * q].contiguous(), q)


@lru_cache(maxsize=4)
def _shared(golden: Golden) -> UniMedVL:
    return golden.build().requires_grad_(False)


def reading(seq: PackedSequence) -> Tensor:
    """(L,) memory places in the order of samples and of arrival, as the reference lays a batch out."""
    layout = seq.layout
    return torch.argsort(layout.sample * (len(seq) + 1) + layout.order)


def rows(seq: PackedSequence, places: Tensor) -> Tensor:
    """Memory places as rows in the order of `reading`."""
    order = reading(seq)
    return torch.empty_like(order).index_copy(0, order, torch.arange(len(order)))[places]
