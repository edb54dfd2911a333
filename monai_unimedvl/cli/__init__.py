# SPDX-License-Identifier: Apache-2.0
"""The command line: `unimedvl ask | report | draw | edit | segment | demo | evaluate | data | bundle | provenance`."""

from monai_unimedvl.cli.main import main

__all__ = ["main"]
