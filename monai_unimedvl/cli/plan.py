# SPDX-License-Identifier: Apache-2.0
"""`unimedvl plan`: what a training takes of memory, time and disk, before it starts."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from monai_unimedvl.cli.command import Result


def plan(options: Namespace) -> Result:
    """The plan of a training config, and which machines hold it."""
    from monai_unimedvl.training import preflight

    setup = _setup(options)
    found = preflight.plan(setup)
    flops = options.flops or (1e14 if setup.cuda else 5e10)  # about a third of an A100's best; one busy core
    lines = _table(found, setup, flops)
    values: dict[str, Any] = {**asdict(found), "stage": setup.stage.name, "machines": {}}
    values["updates_a_day"] = found.steps_a_day(flops)
    if not options.no_machines:
        lines.append("")
        for devices, gib in preflight.MACHINES:
            name, mends = f"{devices} x {gib} GB", preflight.suggest(setup, devices, gib)
            values["machines"][name] = None if mends is None else [mend for mend, _ in mends]
            if mends is None:
                lines.append(f"{name}: does not fit, with any change known here")
            elif not mends:
                lines.append(f"{name}: fits as it is")
            else:
                said = " and ".join(mend for mend, _ in mends)
                lines.append(f"{name}: fits with {said} (max_tokens {mends[-1][1].stage.max_tokens})")
    return lines, values


def _setup(options: Namespace) -> Any:
    """The setup of a config file and of the options beside it."""
    from monai_unimedvl import bundle
    from monai_unimedvl.cli.train import LARGE, MORE
    from monai_unimedvl.training.curriculum import Curriculum
    from monai_unimedvl.training.preflight import Setup
    from monai_unimedvl.training.settings import Settings, read_config
    from monai_unimedvl.weights.headers import read_json

    settings, more = read_config(options.config, MORE) if options.config else (Settings(), {})
    if options.device:
        settings = replace(settings, device=options.device)
    model = options.model or more.get("model", bundle.DEFAULT)
    network = _network(model, read_json)
    steps = int(more.get("steps", 300))
    said = more.get("curriculum")
    sizes = {key: more[key] for key in ("lr", "max_tokens") if key in more}
    if isinstance(said, dict):
        curriculum = Curriculum.from_config(said)
    elif said == "paper" or (said is None and _parameters(network) > LARGE):
        curriculum = Curriculum()
    else:
        curriculum = Curriculum.scaled(steps, **sizes)
    number = str(options.stage or more.get("stage", 1))
    stage = curriculum.stage(1 if number in ("", "all") else int(number))
    if options.max_tokens:
        stage = replace(stage, max_tokens=options.max_tokens)
    return Setup(
        network, stage, settings, curriculum.stage_rates(1), words=options.words,
        adapters=options.adapters or settings.adapters, rank=options.rank or settings.rank,
        quantised=options.quantise or settings.quantise,
    )  # fmt: skip


def _network(model: str, read_json: Any) -> dict[str, Any]:
    """The sizes of a bundle, a folder of weights, or the released network."""
    if model == "released":
        import torch

        from monai_unimedvl.networks.unimedvl import released

        with torch.device("meta"):
            return released().config
    from monai_unimedvl import bundle

    config = Path(bundle.models(model)) / "config.json"
    if not config.is_file():
        raise ValueError(
            f"{model} has no config.json, expected one that weights.save wrote: convert it first, or say "
            "--model released for the released sizes."
        )
    content = read_json(config)
    if "network" not in content:
        raise ValueError(f"{config} has no sizes of a network: convert it first, or say --model released.")
    return content["network"]


def _parameters(network: dict[str, Any]) -> int:
    """About how many a network has: the decoder's matrices, twice."""
    d = network["decoder"]
    each = 2 * d["hidden_size"] ** 2 + 3 * d["hidden_size"] * d["mlp_dim"]
    return 2 * d["num_layers"] * each + d["vocab_size"] * d["hidden_size"]


def _table(found: Any, setup: Any, flops: float) -> list[str]:
    """The plan for people."""
    from monai_unimedvl.training.preflight import GIB

    def size(n: float) -> str:
        return f"{n / GIB:.1f} GiB" if n >= 0.1 * GIB else f"{n / 2**20:.1f} MiB"

    settings, stage = setup.settings, setup.stage
    lines = [
        f"stage {stage.name}: {stage.steps} updates of {settings.packs_each * setup.ranks} packs, "
        f"{stage.max_tokens} tokens each, {settings.forward_precision} on {setup.ranks} x {settings.device}",
        "",
        f"{'parameters':22}{'all':>16}{'learning':>16}",
    ]
    lines += [f"  {part:20}{n:>16,}{found.learning[part]:>16,}" for part, n in found.parameters.items() if n]
    lines.append(f"  {'together':20}{sum(found.parameters.values()):>16,}{sum(found.learning.values()):>16,}")
    lines += ["", "memory of one device"]
    names = {
        "weights": "weights", "gradients": "gradients", "optimiser": "optimiser", "average": "average (ema)",
        "activations": "activations", "encoding": "encoding images", "gathered": "exchange of ranks",
    }  # fmt: skip
    device = asdict(found.device)
    lines += [f"  {said:20}{size(device[key]):>16}" for key, said in names.items() if device[key]]
    lines.append(f"  {'most at one time':20}{size(device['peak']):>16}")
    lines += ["", "memory of one host"]
    lines += [f"  {key:22}{size(n):>14}" for key, n in found.host.items() if n]
    lines += ["", f"{'tokens of a sample':22}{'mean':>16}{'least':>10}{'most':>10}"]
    lines += [
        f"  {kind:20}{mean:>16.0f}{low:>10}{high:>10}" for kind, (mean, low, high) in found.tokens.items()
    ]
    lines.append(f"  packs are {found.fill:.1%} full; {found.rejected:.1%} of samples are longer than a pack")
    days = stage.steps / found.steps_a_day(flops)
    lines += [
        "",
        f"speed: {found.flops:.3g} operations an update; at {flops:.3g} a second "
        f"{found.steps_a_day(flops):,.0f} updates a day, {days:.2g} days for this stage",
        f"disk: {size(found.checkpoint)} a checkpoint, {size(found.kept)} for {settings.keep} and one more",
    ]
    return lines
