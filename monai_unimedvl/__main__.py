# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_unimedvl` is `unimedvl`."""

import sys

from monai_unimedvl.cli import main

if __name__ == "__main__":
    sys.exit(main())
