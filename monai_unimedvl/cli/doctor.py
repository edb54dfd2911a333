# SPDX-License-Identifier: Apache-2.0
"""`unimedvl doctor`: what a folder of weights is, and what mends it; or what this installation can do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

TROUBLE = "torchvision"  # a build for another torch breaks transformers


def add_options(verb: ArgumentParser) -> None:
    """The words of `unimedvl doctor`."""
    verb.add_argument(
        "path", nargs="?", help="bundle, folder or file of weights (default: look at this installation)"
    )
    verb.epilog = (
        f"{verb.epilog}\n\nReads headers only, whatever the size. Exit code 2: it does not load as it is, "
        "and each\nerror says which flag or command mends it."
    )


def doctor(options: Namespace) -> Result:
    """A checkup of weights, or of the installation."""
    if options.path is None:
        return _installation()
    from monai_unimedvl.bundle.places import available, models
    from monai_unimedvl.weights.doctor import examine

    found = examine(models(options.path) if options.path in available() else options.path)
    values = {
        "ok": found.ok, "name": found.name, "kind": found.kind, "works": found.works, "sizes": found.sizes,
        "parts": {part: {"numbers": n, "bytes": size, "types": list(types)}
                  for part, (n, size, types) in found.parts.items()},
        "needs": {need.job: need.sizes for need in found.needs},
        "findings": [asdict(finding) for finding in found.findings],
    }  # fmt: skip
    return found.lines(), values


def _installation() -> Result:
    import importlib.util
    import os
    import subprocess
    import sys
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from monai_unimedvl.networks.quantised import has_kernel
    from monai_unimedvl.weights.memory import available, in_units

    lines, faults = [], []
    for name in ("monai-unimedvl", "torch", "monai", "transformers", "diffusers", "safetensors"):
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} is not installed")
    if importlib.util.find_spec(TROUBLE) is not None:  # in a process of its own: we never import it
        done = subprocess.run([sys.executable, "-c", f"import {TROUBLE}"], capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1].split(":")[0]
            faults.append(
                f"{TROUBLE} cannot be imported ({why}), and transformers breaks with it: "
                f"pip uninstall {TROUBLE}, or install the build for this torch"
            )
    kernels = {kind: has_kernel(kind) for kind in ("int8", "int4")}
    lines.append(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {in_units(available())} free")
    lines.append(f"CUDA: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    lines.append(
        "packed kernels: " + ", ".join(f"{kind} {'yes' if x else 'no'}" for kind, x in kernels.items())
    )
    lines += [f"error: {fault}" for fault in faults] or ["nothing is wrong with this installation"]
    return lines, {"ok": not faults, "kernels": kernels, "faults": faults}
