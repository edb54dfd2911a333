# SPDX-License-Identifier: Apache-2.0
"""What a network can do, measured: predictions for every test item, scores beside baselines, intervals."""

from monai_unimedvl.evaluation.asking import Drawing
from monai_unimedvl.evaluation.benchmarks import AtlasBenchmark, evaluate
from monai_unimedvl.evaluation.report import Report, fill
from monai_unimedvl.evaluation.tables import Row

__all__ = ["AtlasBenchmark", "Drawing", "Report", "Row", "evaluate", "fill"]
