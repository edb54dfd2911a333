# SPDX-License-Identifier: Apache-2.0
"""`unimedvl VERB ...`: the words of the command line, and how its errors look.

Only the standard library is imported here: `--help` answers at once, and a verb loads what it needs. Exit
code 0: done;
1: our fault; 2: what was given does not fit, said in one line; 130: stopped by the user.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from monai_unimedvl import __version__

# A test holds these against the instructions of the corpus, which are too heavy to import for a help text.
EDITS = ("sr4", "t1-to-t2", "t1-to-pd", "t2-to-t1", "t1-to-gm", "ct-to-bone", "h-to-he", "h-to-ihc")
MASKS = ("tissue", "lobes", "tumour", "bone", "nuclei")

Result = tuple[list[str], dict[str, Any]]  # lines for people, values for --json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse raises SystemExit for help and for unknown words)."""
    options = parser().parse_args(arguments)
    os.environ.setdefault(
        "HF_HUB_OFFLINE", "1"
    )  # a model is a folder here: nothing is fetched behind one's back
    try:
        lines, values = _verb(options.verb)(options)
    except Exception as error:
        if options.debug:
            raise
        known = isinstance(error, ValueError)
        said = " ".join(str(error).split()) or type(error).__name__
        if not known:
            said = f"{type(error).__name__}: {said} (not expected: run again with --debug and report it)"
        print(f"unimedvl {options.verb}: {said}", file=sys.stderr)
        return 2 if known else 1
    except KeyboardInterrupt:
        print(f"unimedvl {options.verb}: stopped; nothing half-written was left.", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(values, ensure_ascii=False))
    else:
        print("\n".join(lines))
    return 0 if values.get("ok", True) else 2


def _verb(name: str) -> Callable[[argparse.Namespace], Result]:
    """The function behind a verb; its imports are paid now."""
    if name == "demo":
        from monai_unimedvl.cli.demo import demo

        return demo
    if name in ("data", "bundle", "provenance", "evaluate"):
        from monai_unimedvl.cli import manage

        return getattr(manage, name)
    from monai_unimedvl.cli import verbs

    return getattr(verbs, name)


def parser() -> argparse.ArgumentParser:
    """All verbs with their options and examples."""
    top = argparse.ArgumentParser(
        prog="unimedvl",
        description=(
            "One model that reads and draws medical images and text. Research software, not for diagnosis."
        ),
        epilog="Try `unimedvl demo`, or `unimedvl VERB --help` for an example.",
    )
    top.add_argument("--version", action="version", version=f"unimedvl {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    ask = _add(
        verbs, "ask", "answer a question about images", 'scan.nii.gz "Which plane is this?" --modality mri'
    )
    ask.add_argument("images", nargs="+", metavar="IMAGE", help="file or DICOM series folder")
    ask.add_argument("question")
    _words(ask)
    _reading(ask)

    report = _add(verbs, "report", "describe images", "scan.nii.gz --modality mri --plane coronal")
    report.add_argument("images", nargs="+", metavar="IMAGE", help="file or DICOM series folder")
    report.add_argument("--prompt", help='what to ask for (default: "Describe this image.")')
    _words(report)
    _reading(report)

    draw = _add(
        verbs, "draw", "draw an image from words", '"Axial T2 MRI at the level of the thalamus." --out t2.png'
    )
    draw.add_argument("words", help="what to draw")
    draw.add_argument(
        "--count", type=_whole(1), default=1, help="how many, with seeds from --seed on (default: 1)"
    )
    draw.add_argument(
        "--size", type=_size, help="height x width in pixels, as 64x64 (default: the model's largest)"
    )
    _drawing(draw)

    edit = _add(
        verbs,
        "edit",
        "turn one image into another by an instruction",
        "slice.png --task t1-to-t2 --modality mri",
    )
    edit.add_argument("image", metavar="IMAGE", help="file or DICOM series folder")
    edit.add_argument("instruction", nargs="?", help="what to do, in words; or give --task")
    edit.add_argument(
        "--task", choices=EDITS, metavar="TASK", help=f"a known instruction: {', '.join(EDITS)}"
    )
    _drawing(edit)
    _reading(edit)

    segment = _add(
        verbs,
        "segment",
        "draw a mask and read its labels",
        "scan.nii.gz --task tissue --modality mri --out mask.nii.gz",
    )
    segment.add_argument("image", metavar="IMAGE", help="file or DICOM series folder")
    segment.add_argument("--task", choices=MASKS, required=True, help="what to segment")
    _drawing(segment)
    _reading(segment)

    demo = _add(
        verbs, "demo", "write a page that shows every task on held-out scans", "--out demo", model=True
    )
    demo.add_argument("--cases", type=_whole(1), default=2, help="cases of each task (default: 2)")
    demo.add_argument(
        "--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans (default: the cache)"
    )

    evaluate = _add(verbs, "evaluate", "score a model on the held-out scans", "--limit 20 --out evaluation")
    evaluate.add_argument("--limit", type=_whole(1), help="items of each task and section (default: all)")
    evaluate.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, such as vqa seg-tissue sr4")
    evaluate.add_argument("--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans")
    evaluate.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")

    data = _add(
        verbs,
        "data",
        "fetch the public scans that the model was trained on",
        "fetch-atlas --yes",
        model=False,
    )
    data.add_argument("what", choices=["fetch-atlas"])
    data.add_argument("--yes", action="store_true", help="do not ask before downloading")
    data.add_argument(
        "--from", dest="source", metavar="FOLDER", help="take downloaded files from here, not the network"
    )
    data.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")
    data.add_argument("--only", metavar="NAME", nargs="+", help="only these sources")

    bundle = _add(
        verbs, "bundle", "list or copy the shipped bundles", "copy unimedvl_nano my_bundle", model=False
    )
    bundle.add_argument("what", choices=["list", "copy"])
    bundle.add_argument("name", nargs="?")
    bundle.add_argument("folder", nargs="?")

    mark = _add(verbs, "provenance", "read and check the mark of a generated file", "t2.png", model=False)
    mark.add_argument("files", nargs="+", metavar="FILE", help="a PNG or NIfTI that this program wrote")
    return top


def _add(verbs: Any, name: str, about: str, example: str, model: bool = True) -> argparse.ArgumentParser:
    """A verb with the options that all have; `model` adds those of the verbs that run one."""
    verb = verbs.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"Example:\n  unimedvl {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--out", metavar="PATH", help="where to write; parent folders are made")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
    verb.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    if model:
        verb.add_argument(
            "--model", default="unimedvl_nano", help="bundle or folder of weights (default: %(default)s)"
        )
        verb.add_argument("--seed", type=int, default=0, help="of the chance in sampling (default: 0)")
        verb.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    return verb


def _reading(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("reading", "NIfTI, DICOM file or series folder, PNG, JPEG, TIFF")
    group.add_argument(
        "--modality", help="mri, ct, xray, histopathology, fundus, or a recipe's YAML (default: see below)"
    )
    group.add_argument(
        "--plane", choices=["axial", "coronal", "sagittal"], help="of a volume's slices (default: axial)"
    )
    group.add_argument("--slice", help="its number from 0, or 'middle'")
    group.add_argument("--count", type=_whole(1), help="that many slices, evenly spread")
    group.add_argument("--window", help="of a CT: brain, lung, bone, abdomen ... (default: abdomen)")
    verb.epilog = (
        f"{verb.epilog}\n\nWithout --modality a DICOM file's own modality is used, and 8-bit pictures are"
        " taken as they are;\nother files need it. Of a volume a model of short context gets the middle"
        " slice, others 8 slices; which\nwere taken is said on stderr."
    )


def _words(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--max-words", type=_whole(1), default=200, help="tokens of the answer at most (default: 200)"
    )
    verb.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest word (default: 0)"
    )
    verb.add_argument("--think", action="store_true", help="ask for reasoning first")


def _drawing(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--steps", type=_whole(1), help="network evaluations (default: the model's)")
    verb.add_argument(
        "--guidance", type=float, help="weight of the words, from 1 = off (default: the model's)"
    )
    verb.add_argument("--image-guidance", type=float, help="weight of the image, from 1 = off (default: 1)")


def _whole(least: int) -> Callable[[str], int]:
    """A converter for argparse."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} came, but a whole number from {least} is expected")
        return value

    return number


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} came, but height x width is expected, as 64x64")
    return int(height), int(width)
