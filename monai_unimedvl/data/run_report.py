# SPDX-License-Identifier: Apache-2.0
"""The report of a build as one HTML page: counts, reject reasons, histograms, and a record of each kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from monai_unimedvl.data.jobs import CHARACTERS, SIDES
from monai_unimedvl.data.licences import roll_up
from monai_unimedvl.data.prints import images_of
from monai_unimedvl.data.shards import parquet, record_of
from monai_unimedvl.packages import needed

EXAMPLES = 24
WIDTH = 160  # pixels of an example


def report_page(manifest: Mapping[str, Any], pipeline: Mapping[str, Any], out: Path) -> str:
    """The page; it stands alone.

    Args:
        manifest: with histograms and examples, before these are taken out. out: where the shards lie.
    """
    bars = [
        ("Records by split", manifest["counts"]["split"]), ("By task", manifest["counts"]["sub_task_type"]),
        ("By modality", manifest["counts"]["modality"]), ("By kind", manifest["counts"]["kind"]),
        ("Characters of a record", _bins(manifest["characters"], CHARACTERS)),
        ("Shorter side of its first image, pixels", _bins(manifest["sides"], SIDES)),
        ("Rejects by reason", manifest["rejected"]), ("Words by", manifest["words_by"]),
    ]  # fmt: skip
    tables = [(title, _shares(counts)) for title, counts in bars]
    return render(
        "report.html", name=pipeline["name"], about=pipeline["about"], manifest=manifest, tables=tables,
        licences=roll_up(manifest["licences"]), examples=_examples(manifest["examples"], out),
        sources=[(*key.split("\t"), count) for key, count in manifest["sources"].items()],
    )  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A page of a template of this package; values are escaped.

    Raises:
        ValueError: jinja2 is not installed.
    """
    jinja2 = needed("jinja2", "A page", "data")
    text = resources.files("monai_unimedvl.data").joinpath("templates", template).read_text("utf8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page: str = environment.from_string(text).render(**values)
    return page


def picture(content: bytes, width: int = WIDTH) -> str:
    """An image as the address of a page: a PNG of at most this width."""
    with Image.open(io.BytesIO(content)) as file:
        small = file.convert("RGB")
        small.thumbnail((width, width))
        stream = io.BytesIO()
        small.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _examples(examples: Mapping[str, Sequence[Any]], out: Path) -> list[dict[str, Any]]:
    """One record of each task and modality, out of the shards."""
    shown = []
    for key, (name, row) in sorted(examples.items())[:EXAMPLES]:
        with parquet().ParquetFile(out / f"{name}.parquet") as file:
            group = 0
            while row >= file.metadata.row_group(group).num_rows:
                row -= file.metadata.row_group(group).num_rows
                group += 1
            record = record_of(file.read_row_group(group).slice(row, 1).to_pylist()[0])
        task, modality = key.split("\t")
        pictures = [picture(image.content or b"") for image in images_of(record)[:4]]
        words = [(message.speaker, message.value[:400]) for message in record.message[:4]]
        shown.append(
            {"task": task, "modality": modality, "id": record.id, "pictures": pictures, "words": words}
        )
    return shown


def _bins(counts: Sequence[int], borders: Sequence[int]) -> dict[str, int]:
    """Histogram bins with their names, empty ones at both ends left out."""
    names = [f"{a:,} to {b - 1:,}" for a, b in zip(borders, borders[1:], strict=False)] + [
        f"{borders[-1]:,} on"
    ]
    filled = [place for place, count in enumerate(counts) if count]
    kept = range(filled[0], filled[-1] + 1) if filled else range(0)
    return {names[place]: counts[place] for place in kept}


def _shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """(name, count, share of the largest in percent)"""
    largest = max(counts.values(), default=1)
    return [(name or "none", count, round(100 * count / largest, 1)) for name, count in counts.items()]
