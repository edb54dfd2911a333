# SPDX-License-Identifier: Apache-2.0
"""Protocols by name: what turns answers into a number, said out loud.

score(rows, protocol("strict-v1"))
score(rows, protocol("medevalkit-rule", faithful=True))     # with the faults of its public code
score(rows, protocol("llavamed-v1:substring,dropped"))      # with some of them
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from monai_unimedvl.evaluation.protocols.base import KINDS, Fault, Protocol, Scored, score
from monai_unimedvl.evaluation.protocols.llavamed import llavamed
from monai_unimedvl.evaluation.protocols.medevalkit import medevalkit
from monai_unimedvl.evaluation.protocols.strict import strict
from monai_unimedvl.evaluation.protocols.vilam3 import vila_m3
from monai_unimedvl.evaluation.protocols.vlmevalkit import vlmevalkit

__all__ = ["KINDS", "PROTOCOLS", "Fault", "Protocol", "Scored", "protocol", "score"]

PROTOCOLS: dict[str, Callable[[Collection[str]], Protocol]] = {
    "strict-v1": strict,
    "llavamed-v1": llavamed,
    "medevalkit-rule": medevalkit,
    "vlmevalkit-mcq": vlmevalkit,
    "vila-m3": vila_m3,
}


def protocol(name: str, *, faithful: bool | Collection[str] = ()) -> Protocol:
    """A protocol.

    Args:
        name: one of `PROTOCOLS`; after a colon "faithful", or names of faults with commas in between.
        faithful: True for every fault that the public code is known to have, or some names of them.

    Raises:
        ValueError: an unknown protocol or fault.
    """
    bare, _, told = name.partition(":")
    if bare not in PROTOCOLS:
        raise ValueError(f"protocol is {bare!r}, expected one of {', '.join(PROTOCOLS)}: use one of them.")
    known = [fault.name for fault in PROTOCOLS[bare](()).faults]
    wanted = [*([] if isinstance(faithful, bool) else faithful), *filter(None, told.split(","))]
    if faithful is True or "faithful" in wanted:
        wanted = known
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"{bare} has no fault {unknown[0]!r}, expected faithful or some of {', '.join(known) or 'none'}."
        )
    return PROTOCOLS[bare](wanted)
