# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data review form|summary`: a sample for readers, and what they said."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result


def add(parser: ArgumentParser) -> None:
    """The options of `unimedvl data review`."""
    parser.epilog = (
        "Example:\n  unimedvl data review form corpus --out form.html --count 200\n"
        "  unimedvl data review summary form.html alice.json bob.json --out summary.html\n\n"
        "The form opens from the disk in any browser. Exit code 2 where the sample does not pass."
    )
    parser.add_argument(
        "action", choices=("form", "summary"), help="write a form, or sum up what was exported"
    )
    parser.add_argument(
        "inputs", nargs="+", help="form: records or shards; summary: the form, then the JSON files"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="page to write")
    parser.add_argument("--count", type=int, default=200, help="samples of a form (default: 200)")
    parser.add_argument("--by", default="modality", help="shared out alike by this field (default: modality)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--title", default="Review of a medical corpus", help="of the form")
    parser.add_argument("--root", default="", metavar="FOLDER", help="of the images of records")


def run(options: Namespace) -> Result:
    """A form, or a summary."""
    from monai_unimedvl.data.files import read_records
    from monai_unimedvl.data.review import read_review, sample, write_form, write_summary

    if options.action == "form":
        items = (item for path in options.inputs for item in read_records(path))
        chosen = sample(items, options.count, by=options.by, seed=options.seed)
        first = Path(options.inputs[0])
        root = options.root or (first if first.is_dir() else first.parent)
        form = write_form(chosen, options.out, title=options.title, root=root)
        return [f"wrote {options.out}: {len(chosen)} samples, form {form}"], {
            "outputs": [options.out], "form": form, "samples": len(chosen)
        }  # fmt: skip
    reviews = [read_review(path) for path in options.inputs[1:]]
    found = write_summary(options.inputs[0], reviews, options.out)
    said = "passes" if found["passes"] else "does not pass"
    lines = [f"Q-bar {found['quality']:.3f}: {said} the mark of {found['pass']}, {len(reviews)} readers"]
    for row in found["dimensions"]:
        numbers = [f"{name} {row[name]:.2f}" for name in ("mean", "kappa", "icc") if row[name] is not None]
        lines.append(f"  {row['dimension']}: {', '.join(numbers) or 'not rated'}")
    lines.append(f"wrote {options.out}")
    return lines, {**found, "outputs": [options.out], "ok": found["passes"]}
