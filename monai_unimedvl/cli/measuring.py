# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate`: a model on the held-out scans, in this process or by several workers of Ray.

Workers need no scans: each request carries its pictures. A worker that dies is started again and asked again;
what the others had made is on the disk by then.
"""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result
    from monai_unimedvl.evaluation.asking import Build, Engine, Made, Request
    from monai_unimedvl.evaluation.encoders import Encoder, ImageText
    from monai_unimedvl.evaluation.predictions import Predictions

T = TypeVar("T")


def add_options(verb: argparse.ArgumentParser) -> None:
    """The options of `evaluate` that say who answers."""
    group = verb.add_argument_group(
        "running", "with --out a run that was killed goes on with the same command"
    )
    group.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="ray: several workers on this machine or on RAY_ADDRESS (default: local)",
    )  # fmt: skip
    group.add_argument("--workers", type=int, help="of Ray (default: one a GPU, two on CPUs)")
    group.add_argument(
        "--against", metavar="FILE", help="with --predictions: paired tests of this second file against it"
    )
    group = verb.add_argument_group("scoring drawings", "of --predictions, in the files that it names")
    group.add_argument("--pictures", metavar="FOLDER", help="where the files drawn and truth_image lie")
    group.add_argument(
        "--upstream", action="store_true", help="PSNR and SSIM as the paper's group takes them"
    )
    group.add_argument("--foreground", action="store_true", help="PSNR and SSIM of the foreground as well")
    group.add_argument("--legend", metavar="FILE", help='of masks: JSON such as {"liver": [255, 0, 0]}')
    group.add_argument(
        "--encoder", metavar="KIND=PATH",
        help="distances between sets: inception=FILE, rad-dino=FOLDER or xray=FOLDER; nothing is downloaded",
    )  # fmt: skip
    group.add_argument(
        "--image-text", metavar="KIND=FOLDER",
        help="how well drawings fit their words: clip=FOLDER or biomedclip=FOLDER; nothing is downloaded",
    )  # fmt: skip


def check(options: Namespace) -> None:
    """Refuse settings that what is asked for would not use.

    Raises:
        ValueError: such a setting.
    """
    names = ("upstream", "foreground", "legend", "encoder", "image_text")
    pictures = [name.replace("_", "-") for name in names if getattr(options, name)]
    if pictures and not options.pictures:
        raise ValueError(f"--{pictures[0]} scores drawings: add --predictions FILE --pictures FOLDER.")
    if options.predictions and (options.engine != "local" or options.workers or options.limit):
        raise ValueError(
            "--predictions asks no model: leave --engine, --workers and --limit out; --where takes rows."
        )


def measure(options: Namespace) -> Result:
    """Score a model on the atlas benchmark; --out is a folder for report, page, cards and predictions.

    Raises:
        ValueError: a setting that does not fit, or a folder that cannot be used.
    """
    from monai_unimedvl import bundle as bundles
    from monai_unimedvl import evaluation
    from monai_unimedvl.cli.reading import device
    from monai_unimedvl.cli.writing import writable
    from monai_unimedvl.evaluation.benchmarks import EDIT_STEPS

    if options.workers is not None and (options.engine != "ray" or options.workers < 1):
        raise ValueError(f"--workers {options.workers} came, expected a number from 1 on with --engine ray.")
    if options.out and Path(options.out).is_file():
        raise ValueError(f"--out {options.out} is a file, expected a folder for the report: name another.")
    if options.out:
        writable(Path(options.out) / "index.html")
    network, tokenizer = bundles.load(options.model, device=device(options.device))
    weights = bundles.digest(options.model)
    report = evaluation.evaluate(
        network, tokenizer, root=options.atlas, tasks=options.tasks, limit=options.limit, seed=options.seed,
        permissive_only=options.permissive_only, out=options.out, progress=not options.quiet,
        sections=options.sections, steps=options.steps or EDIT_STEPS, weights=weights,
        engine=on_ray(options) if options.engine == "ray" else None, name=Path(options.model).name,
    )  # fmt: skip
    lines = [report.table(groups=False)]
    if options.out:
        names = sorted(path.name for path in Path(options.out).iterdir() if path.is_file())
        lines.append(f"wrote {options.out}: {', '.join(names)}")
    return lines, {"about": report.about, "rows": [asdict(row) for row in report.rows]}


def against(options: Namespace) -> Result:
    """Paired tests of two prediction files on the same items: that of --predictions less that of --against.

    Raises:
        ValueError: no first file; files that cannot be read, or hold other items.
    """
    from monai_unimedvl.atomic import write
    from monai_unimedvl.evaluation.pairing import compare_files, table

    if not options.predictions:
        raise ValueError("--against needs a first file: add --predictions FILE.")
    pairs = compare_files(
        _file(options, options.against), _file(options, options.predictions), seed=options.seed
    )
    text, values = table(pairs, "against", "predictions"), {"pairs": [asdict(one) for one in pairs]}
    if options.out:
        write(Path(options.out), f"{text}\n")
        return [f"wrote {options.out}"], values
    return [text], values


def pictures(options: Namespace) -> Result:
    """Scores of the drawings that a prediction file names; --out writes the file again with its scores.

    Raises:
        ValueError: no prediction file; files, an encoder or a legend that cannot be read.
    """
    from monai_unimedvl.evaluation.pictures import rows_of, score_pictures, score_words, set_scores
    from monai_unimedvl.evaluation.predictions import write_predictions
    from monai_unimedvl.evaluation.tables import markdown

    if not options.predictions:
        raise ValueError("--pictures needs the file that names them: add --predictions FILE.")
    if options.out and not options.out.endswith(".parquet"):
        raise ValueError(f"--out is {options.out}, expected a name that ends in .parquet: rename it.")
    scored = score_pictures(
        _file(options, options.predictions), options.pictures, upstream=options.upstream,
        inside=options.foreground, legend=_legend(options.legend),
    )  # fmt: skip
    if options.image_text:
        pair = _pair(options.image_text)
        scored = score_words(scored, options.pictures, pair, progress=not options.quiet)
    rows = rows_of(scored, seed=options.seed)
    lines = [markdown(rows), "", f"{scored.about['pictures']}; {scored.about['resized']} resized."]
    values: dict[str, Any] = {"rows": [asdict(row) for row in rows], "about": scored.about}
    if options.encoder:
        sets = set_scores(scored, options.pictures, _encoder(options.encoder), seed=options.seed)
        values["sets"] = {task: asdict(one) for task, one in sets.items()}
        for task, one in sets.items():
            lines += ["", f"{task}: {one.drawn} drawn, {one.real} real images, by {one.encoder}"]
            lines += [
                f"  {name} {found.value:.4f} ({found.low:.4f} to {found.high:.4f}; {found.method})"
                for name, found in one.scores.items()
            ]
            lines += [f"  warning: {line}" for line in one.warnings]
    if options.out:
        write_predictions(scored.rows, options.out, scored.about)
        lines.append(f"wrote {options.out}")
    return lines, values


def _file(options: Namespace, name: str) -> Predictions:
    """A prediction file, with the columns, rows and number of rows that were asked for."""
    from dataclasses import replace

    from monai_unimedvl.cli.scoring import chosen_rows, pairs_of
    from monai_unimedvl.evaluation.predictions import read_predictions

    found = read_predictions(
        name, columns=pairs_of(options.columns or (), "--columns"), ignore=options.ignore, items=options.items
    )
    rows, _ = chosen_rows(found.rows, pairs_of(options.where, "--where"))
    return replace(found, rows=rows, about={**found.about, "items": len(rows)})


def _encoder(told: str) -> Encoder:
    from monai_unimedvl.evaluation import encoders

    kinds: dict[str, Callable[[str], Encoder]] = {
        "inception": encoders.inception, "rad-dino": encoders.rad_dino, "xray": encoders.xray,
    }  # fmt: skip
    return _of_kind("--encoder", told, kinds)


def _pair(told: str) -> ImageText:
    from monai_unimedvl.evaluation import encoders

    return _of_kind("--image-text", told, {"clip": encoders.clip, "biomedclip": encoders.biomedclip})


def _of_kind(option: str, told: str, kinds: Mapping[str, Callable[[str], T]]) -> T:
    """What a word such as inception=FILE names, by the function of its kind."""
    kind, sign, path = told.partition("=")
    if kind not in kinds or not sign or not path:
        raise ValueError(f"{option} is {told!r}, expected KIND=PATH with KIND of {', '.join(kinds)}.")
    return kinds[kind](path)


def _legend(name: str | None) -> dict[str, tuple[int, int, int]] | None:
    if name is None:
        return None
    try:
        found = json.loads(Path(name).read_text("utf8"))
        legend = {str(key): tuple(map(int, colour)) for key, colour in found.items()}
        if not legend or any(len(colour) != 3 for colour in legend.values()):
            raise ValueError("colours have three numbers")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'--legend {name} is no legend, expected JSON such as {{"liver": [255, 0, 0]}}: mend it.'
        ) from error
    return legend  # type: ignore[return-value]


class Actor:
    """One model in one process.

    Args:
        model, device: as on the command line.
        threads: of torch, as in the process that asks: more or fewer would change the last bits.
    """

    def __init__(self, model: str, device: str, threads: int) -> None:
        import torch

        from monai_unimedvl import bundle as bundles
        from monai_unimedvl.cli import reading

        torch.set_num_threads(threads)
        self.network, self.tokenizer = bundles.load(model, device=reading.device(device))
        self.network.eval()

    def ask(self, name: str, request: Request) -> tuple[str, Made]:
        """The answers to one request, with its name."""
        from monai_unimedvl.evaluation.asking import ask

        return name, ask(self.network, self.tokenizer, request)


def on_ray(options: Namespace) -> Engine:
    """The engine that asks workers; with RAY_ADDRESS set they run on that cluster.

    Raises:
        ValueError: Ray is not installed, or a device of a number was named.
    """
    import torch

    from monai_unimedvl.cli.cluster import workers_of
    from monai_unimedvl.data.engines import ray_running
    from monai_unimedvl.packages import needed

    pools = needed("ray.util", "--engine ray", "ray")
    _, cuda = workers_of(options, 1)

    def engine(names: Sequence[str], build: Build) -> Iterator[tuple[str, Made]]:
        if not names:
            return
        workers, _ = workers_of(options, len(names))
        with ray_running(workers) as ray:
            kind = ray.remote(num_cpus=1, num_gpus=int(cuda), max_restarts=2, max_task_retries=2)(Actor)
            pool = pools.ActorPool(
                [kind.remote(options.model, options.device, torch.get_num_threads()) for _ in range(workers)]
            )
            yield from pool.map_unordered(lambda actor, name: actor.ask.remote(name, build(name)), names)

    return engine
