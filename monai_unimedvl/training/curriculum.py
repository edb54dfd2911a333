# SPDX-License-Identifier: Apache-2.0
"""The paper's curriculum as data: what each stage trains on, at which sizes and rates, and what learns.

UniMedVL (arXiv 2510.15710), Table 12. Oddities kept as they stand there: the sampling shares of stage 1 add
up to 105, so they are weights; canvases of stage 3 go down to 32 pixels. Not published, and therefore
BAGEL's: optimiser constants, warm-up, schedule. A stage is counted in updates, its mixture in samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from monai_unimedvl.data.mixture import Dropout, Mixture, Stream
from monai_unimedvl.sequence import Segment
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.values import fit_fields

KINDS = ("text", "text-to-image", "image-to-text", "interleaved")
Lessons = Mapping[str, Sequence[Stream]]  # kind -> the streams of that kind


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum.

    Args:
        steps: updates.
        lr: of AdamW, after the warm-up; the rest of `rates` is the curriculum's.
        weights: of each kind of sample; they need not add up to anything.
        view, canvas: shortest and longest side in pixels; None is what the network was made for.
        max_tokens: of a sample, and of a pack.
        frozen: parts and patterns that do not learn; the autoencoder never does.
        dropout: chances of conditions; which of them a kind has is said by `dropout_of`.
        ema: decay of the average of weights after each update; 0 keeps none.
        text_weight, flow_weight: of the losses.
        detach_understanding: the reference's `freeze_und`.
        anneal: samples over which the mixture moves from the weights of the stage before to its own.
    """

    name: str
    steps: int
    lr: float
    weights: Mapping[str, float]
    max_tokens: int
    view: tuple[int, int] | None = None
    canvas: tuple[int, int] | None = None
    frozen: tuple[str, ...] = ()
    dropout: Dropout = Dropout(text=0.3, view=0.05, canvas=0.05)  # Table 12
    ema: float = 0.995  # Table 12
    text_weight: float = 0.25  # Table 12
    flow_weight: float = 1.0
    detach_understanding: bool = False
    anneal: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.weights) - set(KINDS)):
            raise ValueError(
                f"Stage {self.name!r} has a weight for {unknown[0]!r}, expected some of {', '.join(KINDS)}: "
                "rename it."
            )
        if not any(self.weights.values()) or min(self.weights.values()) < 0:
            raise ValueError(
                f"Stage {self.name!r} has weights {dict(self.weights)}, expected none below 0 and one above: "
                "correct them."
            )
        if self.steps < 1 or self.lr <= 0 or self.max_tokens < 1 or not 0 <= self.ema < 1 or self.anneal < 0:
            raise ValueError(
                f"Stage {self.name!r} has steps={self.steps}, lr={self.lr}, max_tokens={self.max_tokens}, "
                f"ema={self.ema}, anneal={self.anneal}, expected steps, lr and max_tokens above 0, ema in "
                "[0, 1) and anneal from 0: correct them."
            )

    @property
    def objective(self) -> Objective:
        """The losses of this stage."""
        return Objective(self.text_weight, self.flow_weight, detach_understanding=self.detach_understanding)

    def shares(self) -> dict[str, float]:
        """The weights of all kinds, adding up to 1."""
        total = sum(self.weights.values())
        return {kind: self.weights.get(kind, 0.0) / total for kind in KINDS}


# reference trainer: AdamW without decay, linear warm-up of 2000 steps, then constant
PAPER_RATES = Rates(optimizer="adamw", schedule="constant", warmup=2000, weight_decay=0.0)
PAPER = (
    Stage(
        "foundation", steps=85_000, lr=5e-5, max_tokens=18_500, view=(378, 980), canvas=(512, 1024),
        weights={"text": 5, "text-to-image": 25, "image-to-text": 75, "interleaved": 0},
    ),
    Stage(
        "instruction", steps=120_000, lr=2.5e-5, max_tokens=20_000, view=(224, 518), canvas=(512, 1024),
        weights={"text": 5, "text-to-image": 45, "image-to-text": 40, "interleaved": 10}, frozen=("vision",),
    ),
    Stage(
        "unified", steps=70_000, lr=1e-5, max_tokens=27_000, view=(378, 980), canvas=(32, 1024),
        weights={"text": 3, "text-to-image": 35, "image-to-text": 37, "interleaved": 25}, frozen=("vision",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Curriculum:
    """Stages in their order, and the rates they share.

    Example::

        curriculum = Curriculum.scaled(steps=300)
        mixture = curriculum.mixture(1, lessons, to_segments)
    """

    stages: tuple[Stage, ...] = PAPER
    rates: Rates = field(default=PAPER_RATES)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("Curriculum got no stage, expected at least one: add one.")

    def __len__(self) -> int:
        return len(self.stages)

    def stage(self, number: int) -> Stage:
        """The stage of that number, from 1.

        Raises:
            ValueError: there is none.
        """
        if not 1 <= number <= len(self.stages):
            raise ValueError(
                f"There is no stage {number}, expected 1 to {len(self.stages)} ("
                f"{', '.join(stage.name for stage in self.stages)}): choose one of these."
            )
        return self.stages[number - 1]

    def stage_rates(self, number: int) -> Rates:
        """The rates of a stage; Muon's follows AdamW's in proportion."""
        lr = self.stage(number).lr
        return replace(self.rates, lr=lr, matrix_lr=self.rates.matrix_lr * lr / self.rates.lr)

    def mixture(
        self,
        number: int,
        lessons: Lessons,
        to_segments: Callable[..., list[Segment]],
        *,
        seed: int = 0,
        lanes: int = 1,
        lookahead: int = 0,
    ) -> Mixture:
        """The packs of a stage. Streams of a kind share its weight in proportion to their own.

        Args:
            lessons: kind -> its streams.
            to_segments: (dialogue, draw) -> segments, for this stage's sizes.

        Raises:
            ValueError: a kind has a weight but no stream.
        """
        stage = self.stage(number)
        before = self.stages[number - 2] if number > 1 and stage.anneal else stage
        for kind, weight in stage.weights.items():
            if weight and not lessons.get(kind):
                raise ValueError(
                    f"Stage {stage.name!r} draws {weight:g} parts of {kind!r} samples, but the data has none:"
                    f" add some, or set weights.{kind} of this stage to 0."
                )
        goal, start = stage.shares(), before.shares()
        streams: list[Stream] = []
        ends: list[tuple[float, float]] = []  # weight at the start and after annealing
        for kind, found in lessons.items():
            total = sum(stream.weight for stream in found)
            for stream in found:
                first, last = (shares[kind] * stream.weight / total for shares in (start, goal))
                if first or last:
                    dropout = dropout_of(kind, stage.dropout)
                    streams.append(replace(stream, weight=last or first, dropout=dropout))
                    ends.append((first, last))
        moving = stage.anneal if before is not stage else 0
        return Mixture(
            streams, to_segments, budget=stage.max_tokens, seed=seed, lanes=lanes,
            lookahead=lookahead, weights=_Annealed(tuple(ends), moving) if moving else None,
        )  # fmt: skip

    @classmethod
    def scaled(
        cls, steps: int = 300, *, lr: float = 1e-3, max_tokens: int = 6000, anneal: int = 0, ema: float = 0.98
    ) -> Curriculum:
        """The paper's stages for a small model: the same data shares, freezing and proportions.

        Args:
            steps: updates of all stages together, shared as 85 : 120 : 70.
            lr: of the first stage; the others are a half and a fifth of it.
            max_tokens: of a pack.
            ema: an average over about 1 / (1 - ema) updates, which a short run can fill.
        """
        total = sum(stage.steps for stage in PAPER)
        stages = tuple(
            replace(
                stage, steps=max(1, round(steps * stage.steps / total)), lr=lr * stage.lr / PAPER[0].lr,
                max_tokens=max_tokens, view=None, canvas=None, anneal=anneal if number else 0, ema=ema,
            )
            for number, stage in enumerate(PAPER)
        )  # fmt: skip
        warmup = max(1, min(20, steps // 30))
        return cls(stages, replace(PAPER_RATES, lr=lr, matrix_lr=2 * lr, warmup=warmup))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Curriculum:
        """A curriculum out of plain values: {"stages": [{"name": ..., ...}], "rates": {...}}.

        Raises:
            ValueError: an unknown key or a value that does not fit, with its name.
        """
        check_keys(config, ("stages", "rates"), "the curriculum")
        stages = tuple(_build(Stage, row, f"stages[{n}]") for n, row in enumerate(config.get("stages", ())))
        return cls(stages, _build(Rates, config.get("rates", {}), "rates"))

    def to_config(self) -> dict[str, Any]:
        """What `from_config` reads."""
        stages = [{**asdict(stage), "dropout": stage.dropout._asdict()} for stage in self.stages]
        return {"stages": stages, "rates": asdict(self.rates)}


def dropout_of(kind: str, dropout: Dropout) -> Dropout:
    """The conditions that guidance needs branches for: of words when drawing, of images when they are read.

    The reference drops no condition of edits, so that its guidance of edits was never trained; here it is.
    """
    if kind == "text":
        return Dropout()
    if kind == "image-to-text":
        return Dropout(view=dropout.view)
    return Dropout(text=dropout.text) if kind == "text-to-image" else dropout


@dataclass(frozen=True)
class _Annealed:
    """Weights of the streams at a draw: from the first of each pair to the second, over `samples` draws."""

    ends: tuple[tuple[float, float], ...]
    samples: int

    def __call__(self, draw: int) -> list[float]:
        share = min(1.0, draw / self.samples)
        return [(1 - share) * first + share * last for first, last in self.ends]


def check_keys(config: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """That a configuration has no other keys.

    Raises:
        ValueError: it has; names the one that was probably meant.
    """
    for key in config:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"{where} has the key {key!r}, which means nothing here: {meant}")


def _build(cls: type[Any], values: Any, where: str) -> Any:
    """A frozen dataclass out of plain values."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}, expected a mapping of names to values: write it as one.")
    names = [f.name for f in fields(cls)]
    check_keys(values, names, where)
    plain: dict[str, Any] = dict(values)
    if isinstance(chances := plain.get("dropout"), Mapping):
        check_keys(chances, Dropout._fields, f"{where}.dropout")
        plain["dropout"] = Dropout(**fit_fields(chances, Dropout, f"{where}.dropout."))
    elif "dropout" in plain and not isinstance(chances, Dropout):
        raise ValueError(
            f"{where}.dropout is {chances!r}, expected names and chances: write it as a mapping."
        )
    plain = fit_fields(plain, cls, f"{where}.")
    try:
        return cls(**plain)
    except TypeError as error:
        raise ValueError(f"{where} does not fit ({error}): {', '.join(names)} are its names.") from error
