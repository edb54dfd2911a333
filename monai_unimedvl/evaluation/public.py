# SPDX-License-Identifier: Apache-2.0
"""A public benchmark asked item by item: a prediction file, and beside it what was drawn.

    benchmark = read_benchmark("slake-en", "data/slake")
    rows = ask_benchmark(benchmark, network, tokenizer, out="slake")
    print(table(count(rows.rows)))

    OUT/predictions.parquet    one row an item
    OUT/drawn/00000.npy        what the model drew, synthetic; OUT/truth/00000.npy the true image, (3, H, W)

A run that was killed goes on where it stood. Items with a target are drawn, all others are answered in words;
an item that has both a true text and a target is asked for both.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation.asking import Drawing, Engine, Kept, Made, Request, here, weights_hash
from monai_unimedvl.evaluation.predictions import Prediction, Predictions, write_predictions
from monai_unimedvl.evaluation.protocols import protocol as protocol_of
from monai_unimedvl.evaluation.protocols.strict import kind_of
from monai_unimedvl.evaluation.readers import Benchmark, Item
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

WORDS = {"closed": 32, "open": 64, "choice": 32, "report": 320}  # new tokens at most
FILE, DRAWN, TRUTH = "predictions.parquet", "drawn", "truth"
NOTE = "Every array in this folder was drawn by a model: synthetic, no scan of a patient.\n"


def ask_benchmark(
    benchmark: Benchmark, network: UniMedVL, tokenizer: Tokenizer, *, out: str | Path,
    protocol: str = "strict-v1", limit: int | None = None, drawing: Drawing | None = None, batch: int = 16,
    seed: int = 0, weights: str = "", engine: Engine | None = None, progress: bool = True,
) -> Predictions:  # fmt: skip
    """The predictions of a network on a benchmark, written to `out`.

    Args:
        out: folder; one that holds the beginning of the same run is gone on with.
        protocol: whose suffixes are put behind the questions.
        limit: items, drawn by seed and id; None for all.
        drawing: how images are drawn; 4 steps without guidance if None.
        batch: questions at a time; images are drawn one at a time.
        weights: sha256 of the weights, if it is known. engine: who answers; None for this process.

    Raises:
        ValueError: no items, a picture that cannot be read, or `out` holds answers of another run.
    """
    items = choose(benchmark.items, limit, seed)
    if not items:
        raise ValueError(f"{benchmark.name} {benchmark.section} has no item to ask: check its folder.")
    asked, how, folder = protocol_of(protocol), drawing or Drawing(4, 1.0), Path(out)
    about: dict[str, Any] = {
        "benchmark": benchmark.name, "section": benchmark.section, "items": len(items),
        "published": benchmark.published, "missing": list(benchmark.missing), "limit": limit, "seed": seed,
        "protocol": str(asked), "drawing": str(how), "batch": batch,
        "weights": weights or weights_hash(network), "torch": torch.__version__.split("+")[0],
    }  # fmt: skip
    suffixes = [_suffix(item, asked.suffixes) for item in items]
    read = [place for place, item in enumerate(items) if item.truth]
    read.sort(key=lambda place: _words(items[place]))  # a request has one length
    parts = {f"words/{n:06d}": places for n, places in enumerate(_batches(read, items, batch))}
    parts |= {f"image/{place:06d}": [place] for place, item in enumerate(items) if item.target is not None}

    def build(name: str) -> Request:
        places = parts[name]
        if name.startswith("image/"):
            (place,) = places
            return Request(
                [items[place].prompt()], size=_size(items[place], network), drawing=how,
                seeds=(number(items[place], seed),),
            )  # fmt: skip
        prompts = [items[place].prompt(suffixes[place]) for place in places]
        return Request(prompts, words=_words(items[places[0]]))

    kept = Kept(folder, about)
    was_training = network.training
    network.eval()
    try:
        made = _made(parts, build, kept, engine or here(network, tokenizer), progress)
    finally:
        network.train(was_training)
    rows = [
        item.prediction(
            "", benchmark=benchmark.name, section=benchmark.section, suffix=suffix,
            seed=number(item, seed), weights=about["weights"], protocol=str(asked),
        )
        for item, suffix in zip(items, suffixes, strict=True)
    ]  # fmt: skip
    for name, places in parts.items():
        for at, place in enumerate(places):
            rows[place] = _filled(rows[place], items[place], made[name], at, place, folder)
    about["items_published"] = benchmark.published
    write_predictions(rows, folder / FILE, about)
    kept.clear()
    return Predictions(rows, about, FILE)


def choose(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """All items, or some, always the same ones."""
    if limit is None or limit >= len(items):
        return list(items)
    some = {item.id for item in sorted(items, key=lambda item: (number(item, seed), item.id))[:limit]}
    return [item for item in items if item.id in some]


def number(item: Item, seed: int) -> int:
    """The seed of an item."""
    return zlib.crc32(f"{seed} {item.id}".encode())


def _made(
    parts: dict[str, list[int]], build: Any, kept: Kept, engine: Engine, progress: bool
) -> dict[str, Made]:
    """What was made of all requests: from the disk what is there, the rest asked."""
    before = {name: kept.get(name) for name in parts}
    found = {name: made for name, made in before.items() if made is not None}
    with tqdm(total=len(parts), unit=" requests", disable=not progress, leave=False) as bar:
        bar.update(len(found))
        for name, made in engine([name for name in parts if name not in found], build):
            kept.put(name, made)
            found[name] = made
            bar.update()
    return found


def _filled(row: Prediction, item: Item, made: Made, at: int, place: int, folder: Path) -> Prediction:
    """The row of an item with what was made of it."""
    if made.images is None:
        said = made.said[at]
        return replace(
            row, answer=said.text, logprob=said.logprob, tokens=said.tokens, stop_reason=said.stop_reason
        )
    name = f"{place:05d}.npy"
    write(folder / DRAWN / "SYNTHETIC.txt", NOTE)
    _save(folder / DRAWN / name, made.images[at].float() / 255)
    _save(folder / TRUTH / name, item.true_image())
    return replace(row, drawn=f"{DRAWN}/{name}", truth_image=f"{TRUTH}/{name}")


def _save(path: Path, image: Tensor) -> None:
    stream = io.BytesIO()
    np.save(stream, image.clamp(0, 1).numpy().astype(np.float32), allow_pickle=False)
    write(path, stream.getvalue())


def _suffix(item: Item, suffixes: Any) -> str:
    if item.task in ("report", "counterfactual", "text-to-image") or (item.target is not None):
        return ""
    found = suffixes.get(kind_of(_as_row(item)), {})
    return str(found.get(item.language, ""))


def _words(item: Item) -> int:
    return WORDS["report" if item.answer_type == "report" else kind_of(_as_row(item))]


def _as_row(item: Item) -> Prediction:
    return Prediction(
        item.id, truth=item.truth, answer_type=item.answer_type if item.answer_type != "report" else "open",
        options=tuple(item.options),
    )  # fmt: skip


def _batches(places: Sequence[int], items: Sequence[Item], batch: int) -> list[list[int]]:
    """Places in requests of one length of answer."""
    found: list[list[int]] = []
    for place in places:
        if not found or len(found[-1]) == batch or _words(items[found[-1][0]]) != _words(items[place]):
            found.append([])
        found[-1].append(place)
    return found


def _size(item: Item, network: UniMedVL) -> tuple[int, int]:
    """(H, W) to draw: the shape of the true image, on the network's grid and no larger than it can."""
    height, width = item.true_image().shape[1:]
    stride, most = network.canvas_stride, network.canvas_stride * network.latent_side
    scale = min(1.0, most / max(height, width))
    sides = (max(stride, round(side * scale / stride) * stride) for side in (height, width))
    tall, wide = (min(side, most) for side in sides)
    return tall, wide
