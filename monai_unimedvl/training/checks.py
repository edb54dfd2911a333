# SPDX-License-Identifier: Apache-2.0
"""What is wrong from the start is said at the start: a tokenizer of other weights, ranks with other data.

And what is only different is made to fit: the counts of a checkpoint that another number of ranks wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Marks


def check_tokenizer(tokenizer: Any, network: UniMedVL, marks: Marks | None = None) -> None:
    """That the ids of a tokenizer have rows in the network's embedding, and its marks are those trained with.

    Args:
        tokenizer: has `marks` and a length; of anything else nothing is known, and nothing is checked.
        marks: that the training step uses; None does not compare them.

    Raises:
        ValueError: they do not fit.
    """
    found = getattr(tokenizer, "marks", None)
    if found is None or not hasattr(tokenizer, "__len__"):
        return
    rows = network.decoder.embed.weight.shape[0]
    if not len(tokenizer) <= rows < 2 * len(tokenizer):
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} ids and the weights have rows for {rows}, expected as many "
            "or a few more: load both from the same folder."
        )
    if marks is not None and tuple(found) != tuple(marks):
        raise ValueError(
            f"The tokenizer's marks are {tuple(found)}, the training step uses {tuple(marks)}, expected the "
            "same: give the step the marks of the tokenizer that makes the packs."
        )


def check_ranks(parts: Mapping[str, str]) -> None:
    """That all ranks have the same value under each name; every rank must call it.

    Args:
        parts: such as `Mixture.fingerprint()`.

    Raises:
        ValueError: on each rank, naming the first part that differs and the ranks.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, dict(parts))
    for name in dict.fromkeys(key for found in every for key in found):
        values = [found.get(name, "absent") for found in every]
        other = [str(rank) for rank, value in enumerate(values) if value != values[0]]
        if other:
            raise ValueError(
                f"Rank {', '.join(other)} differs from rank 0 in {name} ({values[int(other[0])]} there, "
                f"{values[0]} on rank 0), expected the same everywhere: copy the same shards and "
                "configuration to every machine."
            )


def check_terms(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """That a run goes on under the terms of the checkpoint, which brings its optimiser and its rate along.

    Other ranks may go on with the same packs an update of all together, or of each.

    Args:
        saved, now: name -> value; what only one of them has is not compared.

    Raises:
        ValueError: a value differs.
    """
    then, here = (
        {name: f"{x:.6g}" if isinstance(x, float) else str(x) for name, x in terms.items()}
        for terms in (saved, now)
    )
    differ = [name for name, value in here.items() if then.get(name, value) != value]
    if not {"batch", "accumulate"} <= set(differ):
        differ = [name for name in differ if name not in ("batch", "accumulate")]
    if differ:
        name = differ[0]
        raise ValueError(
            f"The checkpoint is of a run with {name} {then[name]}, this one has {name} {here[name]}, "
            "expected the same: resume with the configuration that wrote it, or begin a new run elsewhere."
        )


def recount(checkpoint: dict[str, Any], ranks: int) -> None:
    """Let Lightning's count of packs, which is that of one rank, go on where the mixture of all ranks stands.

    Without this a run that went on with fewer ranks would begin in the middle of an update.
    """
    place = checkpoint.get("UniMedVLDataModule") or {}
    packs = [lane.get("packs") for lane in place.get("lanes", [place])]
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress")
    if progress is None or None in packs or not progress["total"]["ready"]:
        return
    then, now = progress["total"]["ready"], sum(packs) // ranks
    for part in ("total", "current"):
        moved = progress[part]["ready"] * now // then - progress[part]["ready"]
        progress[part] = {key: count + moved for key, count in progress[part].items()}
