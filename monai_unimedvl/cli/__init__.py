# SPDX-License-Identifier: Apache-2.0
"""The command line: `unimedvl ask | report | draw | edit | segment | demo | evaluate | data | ...`."""

from monai_unimedvl.cli.command import main

__all__ = ["main"]
