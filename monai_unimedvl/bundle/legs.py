# SPDX-License-Identifier: Apache-2.0
"""How weights are made, leg after leg, out of `configs/legs.json` of a bundle; each leg resumes after a kill.

A leg is a run of MONAI configs up to a number of steps. It is run in sittings of at most `longest` minutes:
then, or when it is killed, the next sitting goes on from the last checkpoint. A leg that is done has its
weights in OUT/NAME/weights.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_unimedvl.bundle.places import DEFAULT, find
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.weights.headers import read_json

CONFIG = "legs"


@dataclass(frozen=True)
class Leg:
    """One part of the training.

    Args:
        configs: names of files in `configs/`, laid over each other.
        steps: after which it is done. minutes: that it took, on the cores that the chain names.
        float32: minutes on a CPU that does not multiply in bfloat16; None is not known.
        start: the leg whose weights it begins with; None begins anew.
        settings: laid over the configs.
    """

    name: str
    configs: tuple[str, ...]
    steps: int
    minutes: float
    about: str = ""
    start: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    float32: float | None = None

    @property
    def here(self) -> float:
        """Its minutes on a machine like this one."""
        from monai_unimedvl.training.precision import multiplies_bfloat16  # torch takes seconds to import

        return self.minutes if self.float32 is None or multiplies_bfloat16() else self.float32


@dataclass(frozen=True)
class Chain:
    """All legs, in their order.

    Args:
        permissive: configs laid over those of every leg to leave out sources under the GPL.
        longest: minutes of a sitting. every: steps between checkpoints.
        evaluation: its minutes, and settings of `evaluate`. disk: MB that a run fills.
    """

    folder: Path
    legs: tuple[Leg, ...]
    permissive: tuple[str, ...] = ()
    longest: float = 100
    every: int = 50
    cores: int = 2
    seed: int = 0
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    disk: int = 0

    def sittings(self, leg: Leg) -> int:
        """In how many sittings a leg is done, at the speed that it was measured at."""
        return max(1, math.ceil(leg.here / self.longest))

    def budget(self, permissive_only: bool = False, seed: int | None = None) -> list[str]:
        """What a run takes, in lines: hours, cores, legs, seeds, disk, packages with licences."""
        tested = float(self.evaluation.get("minutes", 0))
        hours = (sum(leg.here for leg in self.legs) + tested) / 60
        count, cores = sum(map(self.sittings, self.legs)), f"{self.cores} core{'s' * (self.cores > 1)}"
        lines = [
            f"budget: {hours:.1f} hours on {cores}, in {count} sittings of at most"
            f" {self.longest:g} minutes, each of which can be killed and goes on",
            *(
                f"  leg {leg.name}: {leg.steps} steps, about {leg.here:g} minutes in"
                f" {self.sittings(leg)} sitting(s): {leg.about or 'as its configs say'}"
                for leg in self.legs
            ),
            f"  evaluation on all held-out items: about {tested:g} minutes",
            f"seed: {self.seed if seed is None else seed}; disk: {self.disk} MB beside the packages",
            "packages" + (", without those under the GPL:" if permissive_only else ":"),
        ]
        return lines + [
            f"  {name} {version}  [{licence}]  {used}"
            for name, version, licence, used in licences(permissive_only)
        ]


def read_chain(path: str | Path = DEFAULT) -> Chain:
    """The legs of a bundle, or of a file like its `configs/legs.json` that lies beside its configs.

    Raises:
        ValueError: no such file, or one that does not say what a leg needs.
    """
    path = Path(path) if Path(path).suffix == ".json" else find(path) / "configs" / f"{CONFIG}.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there, expected the legs of a training: name a bundle that has one.")
    said = read_json(path)
    try:
        legs = tuple(Leg(**{**leg, "configs": tuple(leg["configs"])}) for leg in said.pop("legs"))
        chain = Chain(path.parent, legs, tuple(said.pop("permissive", ())), **said)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path.name} is not a list of legs ({error}), expected name, configs, steps and minutes of each:"
            " see configs/legs.json of unimedvl_nano."
        ) from error
    _check(chain, path.name)
    return chain


def folder_of(out: str | Path, leg: Leg) -> Path:
    """Where a leg lies."""
    return Path(out) / leg.name


def is_done(out: str | Path, leg: Leg) -> bool:
    """Whether a leg has its weights; they are written in one move, after its last step."""
    return (folder_of(out, leg) / "weights" / "config.json").is_file()


def checkpoint(out: str | Path, leg: Leg) -> tuple[int, Path | None]:
    """Step and file of the last checkpoint of a leg; (0, None) before the first."""
    from monai_unimedvl.training.checkpoints import newest, step_of  # Lightning takes seconds to import

    last = newest(folder_of(out, leg) / "checkpoints")
    return (0, None) if last is None else (step_of(last), last)


def encoder_step(out: str | Path, leg: Leg) -> int:
    """How far the encoder's own training is, with which a first leg begins; 0 without one."""
    from monai_unimedvl.training.checkpoints import newest, step_of

    last = newest(folder_of(out, leg) / "vision")
    return 0 if last is None else step_of(last)


def command(
    chain: Chain, leg: Leg, out: str | Path, *, root: str | Path | None = None, seed: int | None = None,
    permissive_only: bool = False,
) -> list[str]:  # fmt: skip
    """The words of MONAI's command for a leg, from its last checkpoint on."""
    names = [*leg.configs, *(chain.permissive if permissive_only else ())]
    files = [str(chain.folder / f"{name}.json") for name in names]
    callback = "train#trainer#callbacks#0#"
    kept = -1 if _averages(files, leg) else 1  # of the checkpoints: all, or the last one
    settings: dict[str, Any] = {
        "output_dir": str(folder_of(out, leg)), "max_steps": leg.steps,
        "seed": chain.seed if seed is None else seed,
        f"{callback}every_n_train_steps": chain.every, f"{callback}save_top_k": kept,
        **leg.settings,
    }  # fmt: skip
    if root is not None:
        settings["dataset_dir"] = str(root)
    if leg.start is not None:
        settings["start"] = str(Path(out) / leg.start / "weights")
    if (last := checkpoint(out, leg)[1]) is not None:
        settings |= {"resume": str(last), "vision_steps": 0}  # the encoder is in the checkpoint
    words = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    return words + [word for key, value in settings.items() for word in (f"--{key}", _said(value))]


def _averages(files: Sequence[str], leg: Leg) -> bool:
    """Whether a leg ends with the mean of its checkpoints, which must then be kept."""
    said: dict[str, Any] = {}
    for file in files:
        said |= read_json(Path(file))
    return bool({**said, **leg.settings}.get("averaged_since"))


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if value is not None else "None"


def _check(chain: Chain, name: str) -> None:
    """Raises ValueError: a leg that cannot be run, or could never be done."""
    known: list[str] = []
    for leg in chain.legs:
        if not re.fullmatch(r"[\w-]+", leg.name) or leg.name in known:
            raise ValueError(
                f"{name} names a leg {leg.name!r}, expected a word that no other leg has: rename it."
            )
        if leg.start is not None and leg.start not in known:
            raise ValueError(
                f"{name}: leg {leg.name!r} starts from {leg.start!r}, expected an earlier one"
                f" ({', '.join(known) or 'none'}): change their order."
            )
        if leg.steps < 1 or leg.steps % chain.every:
            raise ValueError(
                f"{name}: leg {leg.name!r} has {leg.steps} steps, expected a multiple of {chain.every}, the"
                " steps between checkpoints: change either."
            )
        for config in (*leg.configs, *chain.permissive):
            if not (chain.folder / f"{config}.json").is_file():
                raise ValueError(
                    f"{name}: leg {leg.name!r} needs {config}.json, which is not beside it: write it."
                )
        known.append(leg.name)
    if not known:
        raise ValueError(f"{name} has no leg, expected one or more: see configs/legs.json of unimedvl_nano.")


def names_of(legs: Sequence[Leg]) -> str:
    """The names of some legs, for a sentence."""
    return ", ".join(leg.name for leg in legs)
