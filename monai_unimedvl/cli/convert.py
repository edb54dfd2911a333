# SPDX-License-Identifier: Apache-2.0
"""`unimedvl convert`: a checkpoint in our layout, the reference's, or as other runtimes of BAGEL want it."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

LAYOUTS = ("ours", "upstream", "bagel")
DTYPES = ("float32", "bfloat16", "float16")


def add_options(verb: ArgumentParser) -> None:
    """The words of `unimedvl convert`."""
    verb.add_argument("source", metavar="FROM", help="bundle, folder of weights, or OWNER/NAME on the Hub")
    verb.add_argument("target", metavar="TO", help="a new folder")
    verb.add_argument(
        "--layout", choices=LAYOUTS, default="ours",
        help="ours; upstream: as the scripts of UniMedVL and BAGEL read it; bagel: the same with what "
        "vLLM-Omni and ComfyUI need (default: ours)",
    )  # fmt: skip
    verb.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    verb.add_argument("--base", metavar="FOLDER", help="what a partial fine-tune is merged over")
    verb.add_argument(
        "--max-shard", type=size, metavar="SIZE", help="of a file, as 2GB (default: 5GB in ours)"
    )


def convert(options: Namespace) -> Result:
    """Write a checkpoint anew."""
    import torch

    from monai_unimedvl.bundle.places import available, models
    from monai_unimedvl.weights.converting import convert as converted

    source = models(options.source) if options.source in available() else options.source
    target = converted(
        source, options.target, layout=options.layout, base=options.base, max_shard_bytes=options.max_shard,
        dtype=None if options.dtype is None else getattr(torch, options.dtype), progress=not options.quiet,
    )  # fmt: skip
    files = {file.name: file.stat().st_size for file in sorted(target.iterdir())}
    lines = [f"wrote {target} in the layout {options.layout!r}"]
    lines += [
        f"  {name} {size / 1e6:.1f} MB" for name, size in files.items() if name.endswith(".safetensors")
    ]
    if not any(name in files for name in ("tokenizer.json", "vocab.json")):
        lines.append("There was no tokenizer to copy: put tokenizer.json there before the model is used.")
    return lines, {"outputs": [str(target)], "files": files}


def size(text: str) -> int:
    """A converter for argparse: 2GB, 500MB -> bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG])B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ArgumentTypeError(f"{text!r} came, but a size such as 2GB or 500MB is expected")
    return int(float(found[1]) * {"K": 1e3, "M": 1e6, "G": 1e9}[found[2].upper()])
