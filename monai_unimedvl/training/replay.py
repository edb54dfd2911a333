# SPDX-License-Identifier: Apache-2.0
"""A loss that is no number stops the run, and leaves what is needed to look at it again.

`failed/pack.safetensors` holds the tensors of the pack, `failed/pack.json` the rest: segments, record ids,
the number that seeds its noise. `failed/weights` is the network as it was before the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from monai_unimedvl import weights
from monai_unimedvl.atomic import write
from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Marks, Segment, Text, View
from monai_unimedvl.training.acceleration import is_sharded
from monai_unimedvl.training.objective import Losses, Objective, pack_generator

KINDS: dict[str, Callable[..., Segment]] = {"Text": Text, "View": View, "Canvas": Canvas}
FORMAT = "monai_unimedvl pack 1"


class NotFinite(ValueError):
    """A loss or a gradient is NaN or infinite."""


@dataclass(frozen=True)
class Guard:
    """Where a run that fails leaves its pack.

    Args:
        folder: gets `pack.json`, `pack.safetensors` and `weights`; None keeps nothing.
        about: goes into the json: precision, settings.
    """

    folder: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def check(
        self, value: Tensor, network: UniMedVL, batch: Pack, *, marks: Marks, objective: Objective,
        seed: int, number: int, what: str = "loss",
    ) -> None:  # fmt: skip
        """Go on if `value` is a number.

        Raises:
            NotFinite: it is not; names the records of the pack, and says where it was saved.
        """
        if bool(torch.isfinite(value.detach()).all()):
            return
        said = (
            f"The {what} of pack {number} is {float(value.detach()):g}, expected a number; its records are "
            f"{', '.join(batch.origins)}"
        )
        if self.folder is None:
            raise NotFinite(f"{said}: lower the rate, or look at these records.")
        facts = {
            "format": FORMAT, "what": what, "value": f"{float(value.detach()):g}", "seed": seed,
            "number": number, "marks": list(marks), "objective": asdict(objective), **self.about,
        }  # fmt: skip
        path = save_pack(batch, self.folder, facts)
        if not is_sharded(network):  # else no rank has them whole: a replay takes the last checkpoint
            weights.save(network, None, self.folder / "weights")
        raise NotFinite(
            f"{said}; the pack is saved: run `unimedvl train --replay {path}` to see where it begins."
        )


def save_pack(batch: Pack, folder: str | Path, facts: dict[str, Any]) -> Path:
    """Write `pack.safetensors` and `pack.json` with `facts`; returns the path of the json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    samples: list[list[dict[str, Any]]] = []
    for s, segments in enumerate(batch.samples):
        rows = []
        for i, segment in enumerate(segments):
            row: dict[str, Any] = {"kind": type(segment).__name__}
            for name, value in vars(segment).items():
                if isinstance(value, Tensor):
                    tensors[f"{s}.{i}.{name}"] = value.detach().cpu().clone().contiguous()
                elif value is not None:
                    row[name] = value
            rows.append(row)
        samples.append(rows)
    write(folder / "pack.safetensors", save(tensors, metadata={"format": "pt"}))
    content = {**facts, "origins": list(batch.origins), "tokens": batch.tokens, "samples": samples}
    write(folder / "pack.json", json.dumps(content, indent=1) + "\n")
    return folder / "pack.json"


def load_pack(path: str | Path) -> tuple[Pack, dict[str, Any]]:
    """The pack that `save_pack` wrote, and its facts.

    Args:
        path: of the json, of the tensors, or of the folder of both.

    Raises:
        ValueError: no such file, or not a saved pack.
    """
    path = Path(path)
    file = path / "pack.json" if path.is_dir() else path.with_suffix(".json")
    try:
        content = json.loads(file.read_text("utf8"))
        tensors = load_file(file.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} is no saved pack ({' '.join(str(error).split())}), expected the pack.json that a "
            "stopped run left, with its pack.safetensors beside it: check the path."
        ) from error
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {content.get('format')!r}, expected {FORMAT!r}: take the pack.json of a run."
        )
    samples: list[list[Segment]] = []
    for s, rows in enumerate(content.pop("samples")):
        segments: list[Segment] = []
        for i, row in enumerate(rows):
            found = {k.split(".", 2)[2]: v for k, v in tensors.items() if k.startswith(f"{s}.{i}.")}
            options = {k: tuple(v) if k == "grid" else v for k, v in row.items() if k != "kind"}
            segments.append(KINDS[row["kind"]](**options, **found))
        samples.append(segments)
    return Pack(samples, content.pop("origins"), content.pop("tokens"), {}), content


@dataclass(frozen=True)
class Replayed:
    """What a saved pack gives: its losses, and the first module whose output is no number."""

    losses: Losses
    first: str | None
    gradients: tuple[str, ...]  # parameters whose gradient is no number


def replay(network: UniMedVL, batch: Pack, facts: dict[str, Any]) -> Replayed:
    """Run the step of a saved pack again: same times and noise, forward and backward, no update."""
    objective, marks = Objective(**facts["objective"]), Marks(*facts["marks"])
    device = network.decoder.embed.weight.device.type
    half = str(facts.get("precision", "")).startswith("bf16")
    network.zero_grad()
    with watching(network) as found, torch.autocast(device, torch.bfloat16, enabled=half):
        chance = pack_generator(facts["seed"], facts["number"])
        losses = objective(network, batch.samples, marks, chance)
    if losses.loss.requires_grad:
        losses.loss.backward()
    bad = tuple(
        name for name, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    )
    network.zero_grad()
    return Replayed(losses, next(iter(found), None), bad)


@contextmanager
def watching(network: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules, innermost first, whose output is no number."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
