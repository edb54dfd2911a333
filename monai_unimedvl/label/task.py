# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_unimedvl.label.task`: MONAI Label's own process for training and batches, guarded.

It ends when the server that started it has gone, however that ended: what nobody waits for is not published.
"""

from __future__ import annotations

import importlib
import os
import threading
import time

from monai_unimedvl.label.guard import APP, protect
from monai_unimedvl.label.quiet import hush

EVERY = 0.5  # seconds


def follow(parent: int) -> None:
    """End this process, without publishing anything, as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(1)


def main() -> None:
    """Do what MONAI Label asked for on the command line."""
    threading.Thread(target=follow, args=(os.getppid(),), daemon=True).start()
    protect()
    hush()
    importlib.import_module(APP).run_main()


if __name__ == "__main__":
    main()
