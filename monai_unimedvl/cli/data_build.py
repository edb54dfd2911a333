# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data build pipeline.yaml --out corpus`: a corpus with its card, from one file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

# Of the manifest, in --json.
KEPT = ("records", "rejected", "licences", "counts", "patients_told_by", "steps", "absent")


def add(parser: ArgumentParser) -> None:
    """The options of `unimedvl data build`."""
    parser.epilog = (
        "Example:\n  unimedvl data build atlas --out corpus --workers 2\n\n"
        "Stopped or killed, the same command goes on where it was. `atlas` is a pipeline that is shipped."
    )
    parser.add_argument("pipeline", help="YAML file, or the name of one that is shipped, such as atlas")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="of the corpus; new, or begun before")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="who does it")
    parser.add_argument(
        "--commercial", action="store_true", default=None,
        help="refuse licences that forbid commercial use or are not known",
    )  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="throw away what was begun or built there")
    parser.add_argument("--keep-work", action="store_true", help="keep the parts, to look at them")


def run(options: Namespace) -> Result:
    """Build, and say what became of everything."""
    from monai_unimedvl.data.facts import patients_told
    from monai_unimedvl.data.pipeline import build_dataset
    from monai_unimedvl.data.plan import shipped

    manifest = build_dataset(
        shipped(options.pipeline), options.out, engine=options.engine, workers=options.workers,
        commercial=options.commercial, restart=options.restart, keep_work=options.keep_work,
        progress=not options.quiet,
    )  # fmt: skip
    lines = [
        f"{step['step']}: {step['in']:,} in = {step['kept']:,} kept + {step['rejected']:,} rejected"
        for step in manifest["steps"]
    ]
    splits = ", ".join(
        f"{split or 'no split'} {count:,}" for split, count in manifest["counts"]["split"].items()
    )
    lines.append(f"{manifest['records']:,} records in {len(manifest['shards'])} shards: {splits}")
    if told := manifest.get("patients_told_by"):  # a corpus that was built before says nothing of it
        lines.append(patients_told(told))
    lines.append(f"licences: {', '.join(manifest['licences'])}")
    lines += [f"not there: {name}" for name in manifest["absent"]]
    lines.append(f"wrote {options.out}: manifest.json, card.md, croissant.json, report.html, shards")
    kept = {name: manifest[name] for name in KEPT if name in manifest}
    return lines, {"out": str(options.out), **kept}
