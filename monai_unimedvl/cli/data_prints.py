# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data prints IMAGES --name vqa-rad --out vqa-rad.jsonl`: fingerprints of a benchmark."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result
    from monai_unimedvl.data.prints import ImagePrint, WordPrint


def add(parser: ArgumentParser) -> None:
    """The options of `unimedvl data prints`."""
    parser.epilog = (
        "Example:\n  unimedvl data prints vqa-rad/images questions.txt --name vqa-rad --out vqa-rad.jsonl"
    )
    parser.add_argument(
        "inputs", nargs="+", help="folders of pictures, pictures, .txt (a text a line), records or shards"
    )
    parser.add_argument("--name", required=True, help="of the benchmark, which rejects will say")
    parser.add_argument("--out", required=True, metavar="FILE", help="list for the step decontaminate")
    parser.add_argument("--root", default="", metavar="FOLDER", help="of the images of records")


def run(options: Namespace) -> Result:
    """Write the list; what is no picture is counted and named by its place."""
    from monai_unimedvl.data.prints import write_prints

    skipped: list[str] = []
    count = write_prints((row for name in options.inputs for row in _prints(name, options, skipped)),
                         options.out, options.name)  # fmt: skip
    if not count:
        raise ValueError(f"nothing in {', '.join(options.inputs)} could be read: name pictures or texts.")
    lines = [f"wrote {options.out}: {count:,} fingerprints of {options.name}"]
    if skipped:
        lines.append(f"{len(skipped)} files are no pictures, the first: {skipped[0]}")
    return lines, {"outputs": [options.out], "prints": count, "skipped": len(skipped)}


def _prints(name: str, options: Namespace, skipped: list[str]) -> Iterator[ImagePrint | WordPrint]:
    """The prints of one input."""
    from PIL import Image

    from monai_unimedvl.data.files import read_records
    from monai_unimedvl.data.prints import image_print, images_of, word_print, words_of
    from monai_unimedvl.data.record import ImageFile, InvalidRecord, Record
    from monai_unimedvl.packages import MissingPackage

    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name} does not exist, expected pictures, texts or records: check the path.")
    if path.suffix == ".txt":
        yield from (word_print(line) for line in path.read_text("utf8").splitlines() if line.strip())
        return
    if path.suffix in (".jsonl", ".parquet") or (path / "manifest.json").is_file():
        for item in read_records(path):
            if isinstance(item, Record):
                yield from (image_print(each, options.root or path.parent) for each in images_of(item))
                yield word_print(words_of(item))
        return
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        try:
            with Image.open(file) as image:
                width, height = image.size
            yield image_print(ImageFile(file.name.replace("\\", "_"), height, width), file.parent)
        except MissingPackage:
            raise
        except (OSError, InvalidRecord, ValueError):
            skipped.append(str(file))
