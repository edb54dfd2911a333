# SPDX-License-Identifier: Apache-2.0
"""`unimedvl VERB ...`: the words of the command line, and how its errors look.

Only the standard library is imported here: `--help` answers at once, and a verb loads what it needs. Exit
code 0: done; 1: our fault, or some of a list failed; 2: what was given does not fit, said in one line;
130: stopped by the user.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from monai_unimedvl import __version__
from monai_unimedvl.atomic import MACHINE
from monai_unimedvl.cli import bundles, data_steps, measuring, public, scoring, train_nano
from monai_unimedvl.cli import convert as conversion
from monai_unimedvl.cli import doctor as checkup
from monai_unimedvl.cli import options as o
from monai_unimedvl.cli.learning import add_training
from monai_unimedvl.cli.serve import add_options as serving

# A test holds these against the instructions of the corpus, which are too heavy to import for a help text.
EDITS = ("sr4", "t1-to-t2", "t1-to-pd", "t2-to-t1", "t1-to-gm", "ct-to-bone", "h-to-he", "h-to-ihc")
MASKS = ("tissue", "lobes", "tumour", "bone", "nuclei")

# Which file of this folder does a verb, and its function, where the two are not called as the verb is.
DOING = {
    **dict.fromkeys(("ask", "report", "draw", "edit", "segment"), ("run", "run")),
    "bundle": ("bundles", "bundle"),
    "consolidate": ("train", "consolidate"),
    "data": ("data_steps", "run"),
}

# of a file or folder that was named, beside those of the machine
PLACES = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}

Result = tuple[list[str], dict[str, Any]]  # lines for people, values for --json


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse raises SystemExit for help and for unknown words)."""
    try:
        options = parser().parse_args(arguments)
    except KeyboardInterrupt:
        print("unimedvl: stopped before anything was done.", file=sys.stderr)
        return 130
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched behind one's back
    try:
        atlas = getattr(options, "atlas", None)
        if atlas and not os.path.isdir(atlas):
            raise ValueError(f"--atlas {atlas} is no folder, expected that of `data fetch-atlas`: check it.")
        lines, values = _verb(options.verb)(options)
    except Exception as error:
        if options.debug:
            raise
        known = isinstance(error, ValueError)
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("monai_unimedvl"):
            known, name = True, str(error.name).partition(".")[0]
            said = f"this needs {name}, which is not installed: add the extra that README.md names for it."
        if isinstance(error, OSError) and error.errno in {*MACHINE, *PLACES}:
            known, where = True, f"{error.filename} " if error.filename else "a file "
            said = (
                f"{where}cannot be read or written ({error.strerror}): make room, or choose another place, "
                "and run the same command again."
            )
        if not known:
            said = f"{type(error).__name__}: {said} (not expected: run again with --debug and report it)"
        print(f"unimedvl {options.verb}: {said}", file=sys.stderr)
        return 2 if known else 1
    except KeyboardInterrupt:
        goes_on = getattr(options, "input_list", None) or getattr(options, "what", "") == "build"
        again = ", and the same command goes on" if goes_on else ""
        print(f"unimedvl {options.verb}: stopped; nothing half-written was left{again}.", file=sys.stderr)
        return 130
    if options.json:
        _tell(json.dumps(values, ensure_ascii=False), json.dumps(values))
    else:
        _tell("\n".join(lines))
    if values.get("failures"):
        return 1  # some were done
    return 0 if values.get("ok", True) else 2


def _tell(text: str, plain: str | None = None) -> None:
    """Print; in `plain`, or escapes, where a terminal knows no more, and not at all to who has left."""
    if sys.stdout is None:  # closed by who called
        return
    try:
        text.encode(sys.stdout.encoding or "utf8")
    except UnicodeEncodeError:
        text = plain or text.encode("ascii", "backslashreplace").decode()
    try:
        print(text, flush=True)
    except OSError as error:  # such as `head`, or a full disk; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"unimedvl: what was done cannot be shown ({error.strerror}).", file=sys.stderr)


def note(options: argparse.Namespace, text: str) -> None:
    """A remark on stderr, for people."""
    if not options.quiet:
        print(text, file=sys.stderr)


def _verb(name: str) -> Callable[[argparse.Namespace], Result]:
    """The function behind a verb; its imports are paid now."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # its thread waits for ever where memory ends, and is in the way of a fork
    file, function = DOING.get(name, (name.replace("-", "_"),) * 2)
    found: Callable[[argparse.Namespace], Result] = getattr(
        import_module(f"monai_unimedvl.cli.{file}"), function
    )
    return found


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
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=o.Verb)

    ask = o.add(
        verbs, "ask", "answer a question about images", 'scan.nii.gz "Which plane is this?" --modality mri'
    )
    o.words(ask)
    o.reading(ask)
    o.beside(ask)
    o.listing(ask)

    report = o.add(verbs, "report", "describe images", "scan.nii.gz --modality mri --plane coronal")
    report.add_argument("--prompt", help='what to ask for (default: "Describe this image.")')
    o.words(report)
    o.reading(report)
    o.beside(report)
    o.listing(report)

    draw = o.add(
        verbs, "draw", "draw an image from words", '"Axial T2 MRI at the level of the thalamus." --out t2.png'
    )
    draw.add_argument(
        "--count", type=o.whole(1), default=1, help="how many, with seeds from --seed on (default: 1)"
    )
    draw.add_argument(
        "--size", type=o.size, help="height x width in pixels, as 64x64 (default: the model's largest)"
    )
    o.drawing(draw)
    o.listing(draw, "prompt, seed and out")

    edit = o.add(
        verbs,
        "edit",
        "turn one image into another by an instruction",
        "slice.png --task t1-to-t2 --modality mri",
    )
    edit.add_argument(
        "--task", choices=EDITS, metavar="TASK", help=f"a known instruction: {', '.join(EDITS)}"
    )
    o.drawing(edit)
    o.reading(edit)
    o.volumes(edit)
    o.listing(edit)

    segment = o.add(
        verbs,
        "segment",
        "draw a mask and read its labels",
        "scan.nii.gz --task tissue --modality mri --out mask.nii.gz",
    )
    segment.add_argument(
        "--task", type=lambda name: name.removeprefix("seg-"), choices=MASKS, required=True,
        help="what to segment; seg-tissue, as scores name it, is tissue",
    )  # fmt: skip
    o.drawing(segment)
    o.reading(segment)
    o.volumes(segment)
    o.listing(segment, "input, seed and out")

    demo = o.add(
        verbs, "demo", "write a page that shows every task on held-out scans", "--out demo", model=True
    )
    demo.add_argument("--cases", type=o.whole(1), default=3, help="cases of each task (default: 3)")
    demo.add_argument(
        "--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans (default: the cache)"
    )

    evaluate = o.add(verbs, "evaluate", "score a model on the held-out scans", "--limit 20 --out evaluation")
    evaluate.add_argument("--limit", type=o.whole(1), help="items of each task and section (default: all)")
    evaluate.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, such as vqa seg-tissue sr4")
    evaluate.add_argument("--atlas", metavar="FOLDER", help="where `data fetch-atlas` put the scans")
    evaluate.add_argument("--permissive-only", action="store_true", help="leave out sources under GPL")
    evaluate.add_argument(
        "--sections", nargs="+", choices=("val", "test", "test_subject"), default=("test", "test_subject"),
        metavar="SECTION", help="of val, test and test_subject; choose on val (default: both of test)",
    )  # fmt: skip
    evaluate.add_argument("--steps", type=o.whole(1), help="evaluations of an edit (default: as shipped)")
    measuring.add_options(evaluate)
    scoring.add_options(evaluate)
    public.add_options(evaluate)
    evaluate.epilog = (
        f"{evaluate.epilog}\n  unimedvl evaluate --predictions answers.parquet --explain strict-v1 vila-m3"
    )

    add_training(verbs)
    train_nano.add_options(verbs)

    data_steps.add_options(verbs)

    shown = o.add(
        verbs, "recipes", "say what each modality gets, or draw sheets", "mri ct --out sheets", model=False
    )
    shown.add_argument("names", nargs="*", metavar="NAME", help="recipes, such as mri ct (default: all)")
    shown.add_argument("--scans", nargs="+", metavar="FILE", help="to draw, of one recipe (default: public)")

    bundle = o.add(
        verbs, "bundle", "copy, check, pack, fetch and write MONAI bundles",
        "copy unimedvl_nano unimedvl_nano", model=False,
    )  # fmt: skip
    bundles.add_options(bundle)

    label = o.add(
        verbs, "label-app", "write a MONAI Label app", "myapp --modality mri --labels liver=1,spleen=2",
        model=False,
    )  # fmt: skip
    label.add_argument("folder", metavar="DIR", help="a new folder")
    label.add_argument("--model", default="unimedvl_nano", help="bundle or weights (default: %(default)s)")
    label.add_argument("--modality", help="of images that do not say, such as NIfTI: mri, ct ...")
    label.add_argument("--question", help="the usual question")
    label.add_argument("--labels", help="names and numbers of your own masks, as liver=1,spleen=2")

    look = o.add(
        verbs, "doctor", "say what a folder of weights is, and what mends it", "weights/", model=False
    )
    checkup.add_options(look)

    write = o.add(
        verbs, "convert", "write a checkpoint in another layout or precision",
        "weights/ bagel/ --layout bagel --dtype bfloat16", model=False,
    )  # fmt: skip
    conversion.add_options(write)

    mark = o.add(verbs, "provenance", "tell whether a file is synthetic, and altered", "t2.png", model=False)
    mark.add_argument(
        "files", nargs="+", metavar="FILE", help="picture, volume, JSON, page, DICOM file or folder"
    )

    served = o.add(
        verbs, "serve", "serve a model over HTTP, with a page to try it", "--port 8000", model=False
    )
    serving(served)

    send = o.add(
        verbs, "send", "send DICOM results to an archive", "out/ --to dicom://ARCHIVE@pacs:104", model=False
    )
    o.sending(send)
    return top
