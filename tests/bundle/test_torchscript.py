# SPDX-License-Identifier: Apache-2.0
"""models/model.ts, made as the papers say: MONAI's zoo loads it, and it draws what the network draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, load

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch: TorchScript is on its way out


@pytest.mark.slow
def test_the_exported_file_is_what_the_zoo_loads_and_draws_as_the_network_does(whole: Path) -> None:
    config, meta = (str(whole / "configs" / name) for name in ("inference.json", "metadata.json"))
    ckpt_export(
        net_id="network_def", filepath=str(whole / "models" / "model.ts"), config_file=config, meta_file=meta,
        ckpt_file=str(whole / "models" / "model.pt"), bundle_root=str(whole),
    )  # fmt: skip
    common = {"bundle_dir": str(whole.parent), "source": "monaihosting", "workflow_type": "inference"}
    network = load(whole.name, **common).eval()
    scripted, told, _ = load(whole.name, load_ts_module=True, **common)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn, again = network(pictures), scripted(pictures)
    assert drawn.shape == pictures.shape and float(drawn.std()) > 0.01, "something is drawn"
    torch.testing.assert_close(again, drawn, atol=1e-5, rtol=0)
    assert told["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
