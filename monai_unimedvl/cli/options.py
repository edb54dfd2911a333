# SPDX-License-Identifier: Apache-2.0
"""The options that several verbs share, and how positional words are read. Standard library only."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

PLANES = ("axial", "coronal", "sagittal")
RESULTS = "results.jsonl"  # in the folder of a list: one line for each line of it
USAGE = {
    "ask": "IMAGE ... QUESTION",
    "report": "IMAGE ...",
    "draw": "WORDS",
    "edit": "IMAGE [INSTRUCTION]",
    "segment": "IMAGE",
}
FORMATS: dict[
    str, dict[str, tuple[str, ...]]
] = {  # of results: endings, the first is the usual one; "" is a folder of DICOM files
    "ask": {"json": (".json",), "dicom": (".dcm",)},
    "report": {"json": (".json",), "dicom": (".dcm",)},
    "draw": {"png": (".png",), "tiff": (".tiff", ".tif"), "dicom": ("",)},
    "edit": {"png": (".png",), "nifti": (".nii.gz", ".nii"), "dicom": ("",)},
    "segment": {"png": (".png",), "nifti": (".nii.gz", ".nii"), "dicom": (".dcm",)},
}
DICOM = {
    "ask": "a structured report",
    "report": "a structured report",
    "draw": "a secondary capture",
    "edit": "a derived series in a folder",
    "segment": "a SEG",
}
GIVEN = {
    "ask": "files or DICOM series folders, then the question; with --input-list the question of all lines",
    "report": "files or DICOM series folders",
    "draw": "what to draw; with --input-list of lines that say nothing",
    "edit": "a file or DICOM series folder, and what to do in words; or give --task",
    "segment": "a file or DICOM series folder",
}


class Verb(argparse.ArgumentParser):
    """A parser whose words, where it takes a free number, may stand before, between and after the options."""

    _inside = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def, override]
        """As argparse; optional positional words are not used up by the first option."""
        if self._inside or not any(action.dest == "given" for action in self._actions):
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add(verbs: Any, name: str, about: str, example: str, model: bool = True) -> argparse.ArgumentParser:
    """A verb with the options that all have; `model` adds those of the verbs that run one."""
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        usage=f"unimedvl {name} {USAGE[name]} [options]" if name in USAGE else None,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=f"Example:\n  unimedvl {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("--out", metavar="PATH", help="where to write; parent folders are made")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
    verb.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    if name in USAGE:
        verb.add_argument("given", nargs="*", metavar=USAGE[name], help=GIVEN[name])
        formats = ", ".join(FORMATS[name])
        verb.add_argument(
            "--format", choices=FORMATS[name], metavar="FORMAT", help=f"{formats} (dicom: {DICOM[name]})"
        )
        verb.add_argument(
            "--keep-identity", action="store_true",
            help="dicom: patient and study of the source as they are, not a pseudonym",
        )  # fmt: skip
    if model:
        verb.add_argument(
            "--model", default="unimedvl_nano", help="bundle or folder of weights (default: %(default)s)"
        )
        verb.add_argument("--seed", type=seed, default=0, help="of the chance in sampling (default: 0)")
        verb.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 ... (default: cpu)")
    return verb


def reading(verb: argparse.ArgumentParser) -> None:
    """Which pictures of a file are read, and how."""
    group = verb.add_argument_group("reading", "NIfTI, DICOM file or series folder, PNG, JPEG, TIFF")
    group.add_argument(
        "--modality", help="mri, ct, xray ... (`unimedvl recipes`), or a recipe's YAML (default: see below)"
    )
    group.add_argument(
        "--plane", choices=PLANES, help="of a volume's slices (default: axial)"
    )
    group.add_argument("--slice", help="its number from 0, or 'middle'")
    group.add_argument("--count", type=whole(1), help="that many slices, evenly spread")
    group.add_argument(
        "--window", help="of a CT: brain, lung, bone, abdomen ..., [low, high] (default: abdomen)"
    )
    group.add_argument(
        "--settings", type=setting, action="append", metavar="KEY=VALUE",
        help="another setting of the recipe, as volume=0 (of four dimensions); may be given again",
    )  # fmt: skip
    verb.epilog = (
        f"{verb.epilog}\n\nWithout --modality a DICOM file's own modality is used, and 8-bit pictures are"
        " taken as they are;\nother files need it. Of a volume a model of short context gets the middle"
        " slice, others 8 slices; which\nwere taken is said on stderr."
    )


def words(verb: argparse.ArgumentParser) -> None:
    """How an answer is sampled."""
    loading(verb)
    verb.add_argument(
        "--max-words", type=whole(1), default=200, help="tokens of the answer at most (default: 200)"
    )
    verb.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the likeliest word (default: 0)"
    )
    verb.add_argument(
        "--prune", type=share, metavar="SHARE",
        help="drop that share of the tokens of neighbouring slices, those that repeat each other, as 0.55",
    )  # fmt: skip
    verb.add_argument("--think", action="store_true", help="ask for reasoning first")
    verb.add_argument("--per-slice", action="store_true", help="an answer for each slice, not one for all")


def beside(verb: argparse.ArgumentParser) -> None:
    """What is known beside the images."""
    group = verb.add_argument_group("what is known", "put into the prompt in fixed words")
    group.add_argument("--history", metavar="TEXT", help="of the patient")
    group.add_argument("--indication", metavar="TEXT", help="why the images were made")
    group.add_argument("--labs", metavar="FILE", help="CSV: name, value, unit, low, high")
    group.add_argument("--prior-report", metavar="FILE", help="text, our .json, or a DICOM SR")
    group.add_argument("--prior-image", metavar="FILE", help="file or series of an earlier study")
    group.add_argument(
        "--box",
        action="append",
        metavar="X0,Y0,X1,Y1[=NAME]",
        help="where to look: pixels of the slice, or X,Y; R,A,S,R,A,Smm or R,A,Smm in mm; may be given again",
    )


def loading(verb: argparse.ArgumentParser) -> None:
    """In how many bits the model is held."""
    verb.add_argument(
        "--quantize", choices=["int8", "nf4", "int4"],
        help="hold the model in 8 or 4 bits: half or a quarter of the memory (default: as its files are)",
    )  # fmt: skip


def drawing(verb: argparse.ArgumentParser) -> None:
    """How an image is sampled."""
    loading(verb)
    verb.add_argument("--steps", type=whole(1), help="network evaluations (default: the model's)")
    verb.add_argument(
        "--guidance", type=float, help="weight of the words, from 1 = off (default: the model's)"
    )
    verb.add_argument("--image-guidance", type=float, help="weight of the image, from 1 = off (default: 1)")


def volumes(verb: argparse.ArgumentParser) -> None:
    """A whole volume instead of one slice."""
    verb.add_argument(
        "--whole", action="store_true", help="every slice: a volume in the space of the source comes out"
    )
    verb.add_argument(
        "--fuse-planes", action="store_true", help="with --whole: draw in all three planes, and join them"
    )


def listing(verb: argparse.ArgumentParser, columns: str = "input, prompt, seed and out") -> None:
    """One request, or a list of them."""
    group = verb.add_argument_group(
        "many at once", f"Results, manifests and {RESULTS} go to the folder --out; run again to go on."
    )
    group.add_argument(
        "--input-list",
        metavar="FILE",
        help=f"text (a path a line), CSV or JSONL with {columns}; '-' is stdin",
    )
    group.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="ray: a list on several devices at once"
    )
    group.add_argument(
        "--workers", type=whole(1), help="processes of --engine ray (default: one for each GPU, or 2)"
    )
    group.add_argument(
        "--audit", metavar="FILE", help="add one JSON line per request: who, when, and hashes of what"
    )
    group.add_argument("--who", metavar="NAME", help="of the audit (default: the account that runs this)")


def sending(verb: argparse.ArgumentParser) -> None:
    """Where to, and by which queue."""
    verb.add_argument("files", nargs="*", metavar="FILE", help="DICOM files or folders of them")
    verb.add_argument(
        "--to",
        metavar="ARCHIVE",
        help="dicom://TITLE@host:104 or dicom+tls://... (C-STORE), https://host/dicom-web (STOW-RS)",
    )
    verb.add_argument(
        "--queue", metavar="FOLDER", default="outbox", help="what waits lies here (default: %(default)s)"
    )
    verb.add_argument("--calling", metavar="TITLE", help="our own entity title (default: UNIMEDVL)")
    verb.add_argument("--tries", type=whole(1), default=1, help="rounds now, with pauses (default: 1)")
    verb.add_argument("--watch", action="store_true", help="try until nothing waits")
    verb.add_argument("--again", action="store_true", help="try what was refused once more")
    verb.add_argument("--unmarked", action="store_true", help="send what bears no mark of being synthetic")
    verb.add_argument("--list", action="store_true", help="only say what is in the queue")
    verb.add_argument("--ca", metavar="FILE", help="PEM: who signed the archive's certificate")
    verb.add_argument("--certificate", metavar="FILE", help="PEM: our own certificate and its key")
    verb.add_argument("--token-file", metavar="FILE", help="a bearer token of a DICOMweb service")
    verb.epilog = (
        f"{verb.epilog}\n\nWithout FILE what waits in the queue is tried again. Nothing leaves the queue"
        " before the archive has\nsaid that it keeps it, so a stop at any moment loses nothing. Exit code 1:"
        " some wait or were refused.\nUser and password of a DICOMweb service belong into ~/.netrc."
    )


def whole(least: int) -> Callable[[str], int]:
    """A converter for argparse: a whole number from `least`."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} came, but a whole number from {least} is expected")
        return value

    return number


def seed(text: str) -> int:
    """A converter for argparse: a whole number that a generator of torch takes."""
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63 - 1_000_000:  # --count adds to it
        raise argparse.ArgumentTypeError(f"{text!r} came, but a whole number of 64 bits is expected")
    return value


def share(text: str) -> float:
    """A converter for argparse: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} came, but a share between 0 and 1 is expected, as 0.55")
    return value


def value(text: str) -> Any:
    """What a word says, as JSON does: 0, [-100, 200], true; anything else is the word itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def setting(text: str) -> tuple[str, Any]:
    """A converter for argparse: volume=0 -> ("volume", 0)"""
    key, equals, said = text.partition("=")
    if not (key and equals and said):
        raise argparse.ArgumentTypeError(f"{text!r} came, but KEY=VALUE is expected, as volume=0")
    return key, value(said)


def size(text: str) -> tuple[int, int]:
    """A converter for argparse: 64x64 -> (64, 64)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} came, but height x width is expected, as 64x64")
    return int(height), int(width)


def positional(options: argparse.Namespace) -> None:
    """Sort the words of a verb into `options.images` and `options.prompt`; beside a list stands no image.

    Raises:
        ValueError: too few words or too many.
    """
    given, usage = list(options.given), USAGE[options.verb]
    images, asked = usage.split()[0].startswith("IMAGE"), usage.split()[-1]
    spoken = asked.strip("[]") in ("QUESTION", "WORDS", "INSTRUCTION")
    options.prompt = getattr(options, "prompt", None)  # of report it is an option
    if options.input_list is not None:
        if len(given) > spoken:
            raise ValueError(
                f"{given[0]!r} came beside --input-list, but images stand in the list: leave it out."
            )
        options.images = []
        if spoken:
            options.prompt = given[0] if given else None
        return
    many = "..." in usage
    least = images + (spoken and not asked.startswith("["))
    if len(given) < least or (not many and len(given) > images + spoken):
        count = f"{len(given)} word{'' if len(given) == 1 else 's'}"
        raise ValueError(
            f"{count} came, but `unimedvl {options.verb} {usage}` is expected: put sentences in quotes, or"
            " name files by --input-list."
        )
    if spoken:
        cut = len(given) - 1 if many or not images else 1
        options.prompt = given[cut] if cut < len(given) else None
        given = given[:cut]
    options.images = given
