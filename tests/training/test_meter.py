# SPDX-License-Identifier: Apache-2.0
"""Speed, use of the device, losses by name; and the callbacks that log and draw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import MARKS, canvas, text, tiny_network, view
from torch.utils.flop_counter import FlopCounterMode

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.sequence import count_tokens
from monai_unimedvl.training.callbacks import _show
from monai_unimedvl.training.meter import Speed, Tally, measured_flops, step_flops, task_of
from monai_unimedvl.training.objective import Objective, pack_generator

SAMPLES = [
    [text(*range(1, 9)), view(4, 4, 1), text(*[5] * 12, loss=True)],
    [text(7, 8), view(2, 3), canvas(2, 3, 2), canvas(4, 4, 3, noisy=True)],
    [text(1), text(2, dropped=True), text(3, 4, 5, loss=True)],
]


def test_operations_of_a_step_are_those_that_torch_counts() -> None:
    network = tiny_network()
    with FlopCounterMode(display=False) as counter:
        Objective(touch=False)(network, SAMPLES, MARKS, pack_generator(0, 0)).loss.backward()
    lengths = [8 + 2 + 16 + 2 + 12 + 2, 2 + 2 + 6 + 2 + 6 + 2 + 16 + 2, 1 + 2 + 3 + 2]
    attention = 3 * 4 * sum(n * n for n in lengths) * 16 * len(network.decoder.layers)
    attention += 3 * 4 * (16**2 + 6**2) * network.vision.norm.weight.shape[0] * len(network.vision.layers)
    # torch does not count attention on a CPU, and needs no gradient for what comes in
    assert step_flops(network, SAMPLES) - attention == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_losses_are_told_by_task_and_modality() -> None:
    tally = Tally(lambda origin: [*task_of(origin), "MRI" if "vqa" in origin else "CT"])
    rows = torch.tensor([[6.0, 3.0, 0.0, 0.0], [0.0, 0.0, 4.0, 8.0], [2.0, 1.0, 1.0, 1.0]])
    tally.add(["vqa/1/0", "sr4/2/0", "vqa/9/1"], rows)
    tally.add(["vqa/3/0"], torch.tensor([[4.0, 4.0, 0.0, 0.0]]))
    assert tally.means("val_") == {
        "val_text/vqa": 1.5, "val_text/MRI": 1.5, "val_flow/sr4": 0.5, "val_flow/CT": 0.5,
        "val_flow/vqa": 1.0, "val_flow/MRI": 1.0,
    }  # fmt: skip
    assert tally.means() == {}
    assert task_of("text-to-image/some/id/3") == ["text-to-image/some"]


def test_speed_is_tokens_by_seconds_over_all_ranks() -> None:
    network, pack = tiny_network(), Pack(SAMPLES, ["a", "b", "c"], sum(map(count_tokens, SAMPLES)), {})
    speed = Speed(peak=1e6)
    speed.add(network, pack, 0.5)
    speed.add(network, pack, 1.5)
    found = speed.read(ranks=2)
    assert found["tokens_per_second"] == 2 * pack.tokens * 2 / 2.0 and found["step_seconds"] == 1.0
    assert found["mfu"] == pytest.approx(step_flops(network, SAMPLES) * 2 / 2.0 / 1e6)
    assert speed.read() == {}
    without = Speed(peak=0)
    without.add(network, pack, 1.0)
    assert "mfu" not in without.read()
    assert measured_flops(torch.device("cpu"), torch.float32, 64) > 1e6


def test_pictures_go_to_the_loggers_that_take_some() -> None:
    seen: list[Any] = []

    class TensorBoardLogger:
        experiment = SimpleNamespace(add_image=lambda *words: seen.append(("tensorboard", *words)))

    class MLFlowLogger:
        run_id = "r"
        experiment = SimpleNamespace(log_image=lambda run, x, key, step: seen.append((run, x.shape)))

    class WandbLogger:
        def log_image(self, key: str, pictures: list[Any], step: int) -> None:
            seen.append((key, pictures[0].shape, step))

    class CSVLogger:
        pass

    sheet = torch.rand(3, 4, 6)
    for logger in (TensorBoardLogger(), MLFlowLogger(), WandbLogger(), CSVLogger()):
        _show(logger, sheet, 5)
    assert seen[0][:2] == ("tensorboard", "samples") and seen[0][3] == 5
    assert seen[1:] == [("r", (4, 6, 3)), ("samples", (4, 6, 3), 5)]
