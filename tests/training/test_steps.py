# SPDX-License-Identifier: Apache-2.0
"""One step is one step: by hand, in Lightning, in MONAI's trainer; and MONAI's handlers work on it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

import ignite.metrics
import pytest
import pytorch_lightning as pl
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, StatsHandler, ValidationHandler
from tiny import MARKS, canvas, text, tiny_network, view
from torch.utils.data import DataLoader

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Turn
from monai_unimedvl.training.engine import IterationUpdate, PreparePacks, ValidationUpdate
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.objective import VALIDATION, Objective, pack_generator
from monai_unimedvl.training.optimizer import Rates

SEED, CLIP = 7, 0.5
OBJECTIVE = Objective(text_weight=0.5)
RATES = Rates(optimizer="adamw", lr=1e-2, schedule="constant", warmup=0)


def pack(n: int) -> Pack:
    """A pack with everything in it; every third has no picture."""
    samples = [[text(3, 4), view(2, 2, n), text(5, n % 7, loss=True)]]
    if n % 3:
        samples.append([text(7), canvas(2, 2, n), canvas(2, 3, n + 1, noisy=True)])
    return Pack(samples, [f"a/{n}/0", f"b/{n}/0"][: len(samples)], 40, {})


def packs() -> Iterator[Pack]:
    return map(pack, count())


def by_hand(network: UniMedVL, steps: int, accumulate: int) -> UniMedVL:
    """What anybody would write."""
    optimizer = RATES.build(network)
    source = packs()
    for step in range(steps):
        optimizer.zero_grad()
        for n in range(accumulate):
            chance = pack_generator(SEED, step * accumulate + n)
            (OBJECTIVE(network, next(source).samples, MARKS, chance).loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
    return network


def in_lightning(network: UniMedVL, steps: int, accumulate: int, folder: Path, **options: Any) -> UniMedVL:
    module = UniMedVLModule(network, MARKS, objective=OBJECTIVE, rates=RATES, seed=SEED, **options)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    source = map(pack, range(steps * accumulate + 1))
    trainer.fit(module, DataLoader(list(source), batch_size=None, collate_fn=lambda x: x))
    return network


def in_ignite(network: UniMedVL, steps: int, accumulate: int) -> UniMedVL:
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=packs(), epoch_length=steps * accumulate,
        network=network, optimizer=RATES.build(network), loss_function=torch.nn.Identity(), decollate=False,
        iteration_update=IterationUpdate(MARKS, OBJECTIVE, seed=SEED, clip=CLIP),
        accumulation_steps=accumulate,
    )  # fmt: skip
    trainer.run()
    return network


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_same_by_hand_in_lightning_and_in_ignite_to_the_bit(
    tmp_path: Path, accumulate: int
) -> None:
    start = tiny_network()
    bare = by_hand(deepcopy(start), 3, accumulate)
    lightning = in_lightning(deepcopy(start), 3, accumulate, tmp_path)
    ignited = in_ignite(deepcopy(start), 3, accumulate)
    for (name, p), q, r, before in zip(
        bare.named_parameters(), lightning.parameters(), ignited.parameters(), start.parameters(), strict=True
    ):
        assert torch.equal(p, q), f"Lightning: {name}"
        assert torch.equal(p, r), f"ignite: {name}"
        assert not torch.equal(p, before), f"{name} did not learn"


def test_recomputed_layers_change_nothing(tmp_path: Path) -> None:
    start = tiny_network()
    plain = in_lightning(deepcopy(start), 2, 1, tmp_path)
    again = in_lightning(deepcopy(start), 2, 1, tmp_path, recompute=True)
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_monais_handlers_work_on_a_step_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = tiny_network()
    optimizer = RATES.build(network)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[pack(1), pack(2)], network=network, decollate=False,
        prepare_batch=PreparePacks(), iteration_update=ValidationUpdate(MARKS, OBJECTIVE, seed=SEED),
        key_val_metric={"val_loss": ignite.metrics.Average(output_transform=itemgetter("loss"))},
        metric_cmp_fn=lambda now, best: now < best,
    )  # fmt: skip
    saver = {"network": network, "optimizer": optimizer}
    logged = {"tag_name": "loss", "output_transform": itemgetter("loss"), "name": "steps"}
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=2, train_data_loader=[pack(4), pack(5)], network=network, decollate=False,
        optimizer=optimizer, loss_function=torch.nn.Identity(), prepare_batch=PreparePacks(),
        iteration_update=IterationUpdate(MARKS, OBJECTIVE, seed=SEED),
        train_handlers=[
            ValidationHandler(1, evaluator), StatsHandler(**logged),
            CheckpointSaver(str(tmp_path), saver, save_interval=1),
        ],
    )  # fmt: skip
    with caplog.at_level("INFO"):
        trainer.run()
    assert "loss:" in caplog.text
    with torch.no_grad():
        wanted = [
            OBJECTIVE(network, pack(n).samples, MARKS, pack_generator(SEED, VALIDATION + n - 1)).loss.item()
            for n in (1, 2)
        ]
    assert evaluator.state.metrics["val_loss"] == pytest.approx(sum(wanted) / 2, abs=1e-9)
    found = torch.load(tmp_path / "checkpoint_epoch=2.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, found["network"][name]), name
    assert found["optimizer"]["param_groups"][0]["lr"] == 1e-2


def test_a_batch_of_monais_own_becomes_a_pack() -> None:
    seen: list[tuple[Any, bool]] = []

    def to_segments(turns: list[Turn], draw: bool) -> list[Any]:
        seen.append((turns, draw))
        return [text(1, 2), text(3, loss=True)]

    prepare, images = PreparePacks(to_segments), torch.rand(2, 3, 4, 4)
    found, label = prepare({"image": images, "question": ["a?", "b?"], "answer": ["yes", "no"]})
    assert label is None and found.tokens == 14 and len(found.samples) == len(found.origins) == 2
    (asked, told), draw = seen[1]
    assert torch.equal(asked.parts[0], images[1]) and asked.parts[1] == "b?" and told.parts == ["no"]
    assert not draw
    prepare({"question": ["draw"], "target": images[:1]})
    assert seen[2][1] and torch.equal(seen[2][0][1].parts[0], images[0])
    assert prepare(pack(1))[0].origins == ["a/1/0", "b/1/0"]
    with pytest.raises(ValueError, match="got dict, expected a Pack, or with to_segments"):
        PreparePacks()({"question": ["a"]})
    with pytest.raises(ValueError, match="a batch of question, expected question and one of"):
        prepare({"question": ["a"]})
