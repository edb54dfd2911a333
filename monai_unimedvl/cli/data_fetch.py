# SPDX-License-Identifier: Apache-2.0
"""`unimedvl data fetch-atlas`: the public scans that the model was trained on, with consent."""

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
