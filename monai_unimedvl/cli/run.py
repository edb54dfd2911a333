# SPDX-License-Identifier: Apache-2.0
"""One request of ask, report, draw, edit or segment, or a list of them; each leaves a line in the audit."""

from __future__ import annotations

import hashlib
from argparse import Namespace

from monai_unimedvl.cli import verbs
from monai_unimedvl.cli.batch import hashes, run_list
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.options import positional
from monai_unimedvl.delivery.audit import Audit
from monai_unimedvl.provenance import sha256


def run(options: Namespace) -> Result:
    """What the command line asks for."""
    positional(options)
    if options.input_list is None and (options.engine != "local" or options.workers):
        raise ValueError("--engine and --workers came without a list: add --input-list FILE.")
    if options.workers and options.engine == "local":
        raise ValueError(f"--workers {options.workers} came, but the local engine is one: add --engine ray.")
    if options.keep_identity and options.format != "dicom":
        raise ValueError("--keep-identity is for DICOM, which files by patient: add --format dicom.")
    if getattr(options, "fuse_planes", False) and not options.whole:
        raise ValueError("--fuse-planes joins whole volumes: add --whole.")
    if options.who and not options.audit:
        raise ValueError("--who is for the audit: add --audit FILE.")
    audit = Audit(options.audit, options.who) if options.audit else None
    if options.input_list is not None:
        return run_list(options, audit)
    model = verbs.Model.of(options)
    if audit is None:
        return getattr(verbs, options.verb)(options, model)
    try:
        lines, values = getattr(verbs, options.verb)(options, model)
    except BaseException as error:
        audit.add(options.verb, model.digest, hashes(options), failed=type(error).__name__)
        raise
    made = [sha256(path) for path in values.get("outputs", ())]
    if not made:  # an answer that was only shown
        made = [hashlib.sha256(values["answer"].encode()).hexdigest()]
    audit.add(options.verb, model.digest, hashes(options), made)
    return lines, values
