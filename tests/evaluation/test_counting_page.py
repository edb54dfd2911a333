# SPDX-License-Identifier: Apache-2.0
"""docs/EVALUATION.md says of protocols and benchmarks what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_unimedvl.evaluation.protocols import PROTOCOLS
from monai_unimedvl.evaluation.readers import BENCHMARKS

PAGE = (Path(__file__).parents[2] / "docs" / "EVALUATION.md").read_text("utf8")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_and_each_of_its_faults_is_on_the_page(name):
    protocol = PROTOCOLS[name](())
    assert f"| `{name}` | {protocol.says['select']} |" in PAGE and protocol.source in PAGE
    for fault in protocol.faults:
        what, where = (text.replace("|", "\\|") for text in (fault.what, fault.where))
        assert f"| `{name}` | `{fault.name}` | {what} | {where} |" in PAGE


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_and_its_count_is_on_the_page(name):
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` | "))
    for section, count in BENCHMARKS[name].sections.items():
        assert f"{section} {'-' if count is None else f'{count:,}'}" in line
    assert BENCHMARKS[name].source in line
