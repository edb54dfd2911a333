# SPDX-License-Identifier: Apache-2.0
"""The verbs that keep house: evaluate, provenance, and `data fetch-atlas`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from monai_unimedvl.cli.command import Result


def add(parser: ArgumentParser) -> None:
    """The options of `unimedvl data fetch-atlas`."""
    parser.epilog = "Example:\n  unimedvl data fetch-atlas --yes"
    parser.add_argument("--out", metavar="PATH", help="where to put them (default: the cache)")
    parser.add_argument("--yes", action="store_true", help="do not ask before downloading")
    parser.add_argument(
        "--from", dest="source", metavar="FOLDER", help="take downloaded files from here, not the network"
    )
    parser.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="only these sources")


def run(options: Namespace) -> Result:
    """Fetch the packages of the atlas corpus; those that cannot be had are named, and the rest goes on."""
    from monai_unimedvl.data.fetch import fetch_atlas

    def confirm(listing: str) -> bool:
        print(listing, file=sys.stderr)
        if options.yes:
            return True
        if not sys.stdin.isatty():
            raise ValueError("nobody is here to agree to these downloads and licences: add --yes.")
        print("Fetch these? [y/N] ", end="", file=sys.stderr, flush=True)
        return input().strip().lower() in ("y", "yes")

    found = fetch_atlas(
        options.out, from_folder=options.source, names=options.only, permissive_only=options.permissive_only,
        confirm=confirm, progress=not options.quiet,
    )  # fmt: skip
    lines = [f"ready in {found.root}: {', '.join(found.ready) or 'nothing'}"]
    lines += [f"not there: {name}: {' '.join(why.split())}" for name, why in found.failed.items()]
    if found.failed and found.ready:
        lines.append("The demo and the training go on without these.")
    return lines, {
        "root": str(found.root),
        "ready": found.ready,
        "failed": found.failed,
        "ok": bool(found.ready),
    }


def evaluate(options: Namespace) -> Result:
    """Score a model on the atlas benchmark, --out is a folder then; or a prediction file by protocols."""
    from monai_unimedvl.cli import measuring

    measuring.check(options)
    if options.against:
        return measuring.against(options)
    if options.pictures:
        return measuring.pictures(options)
    if options.predictions or options.explain or options.protocols or options.judge:
        from monai_unimedvl.cli.scoring import evaluate_predictions

        if not options.predictions:
            raise ValueError("protocols score a prediction file: add --predictions FILE.")
        return evaluate_predictions(options)
    if options.benchmark or options.data:
        from monai_unimedvl.cli.public import evaluate_benchmark

        if not options.benchmark:
            raise ValueError("--data holds the files of a benchmark: add --benchmark NAME.")
        return evaluate_benchmark(options)
    return measuring.measure(options)


def provenance(options: Namespace) -> Result:
    """Which each file is: marked, altered, unmarked, or stripped of a mark that its pixels still bear."""
    from monai_unimedvl.provenance import examine

    lines, said = [], []
    for name in options.files:
        verdict = examine(name)
        lines.append(f"{name}: {verdict.case}: {verdict.why}")
        mark = verdict.mark or {}
        told = ("software", "created", "task", "prompt", "seed", "weights")
        lines += [f"  {key}: {mark[key]}" for key in told if key in mark]
        found = verdict.found
        seen = None if found is None else {"score": round(found.score, 1), "id": found.id}
        said.append({"file": name, "case": verdict.case, "why": verdict.why, "mark": mark, "invisible": seen})
    return lines, {"verdicts": said, "ok": all(one["case"] == "marked" for one in said)}
