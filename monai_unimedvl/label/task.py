# SPDX-License-Identifier: Apache-2.0
"""`python -m monai_unimedvl.label.task`: MONAI Label's own process for training and batches, guarded.

It ends when the server that started it has gone, however that ended: what nobody waits for is not published.
"""

from __future__ import annotations

import importlib
import os
import threading
import time

PARENT = "UNIMEDVL_LABEL_PARENT"  # process id of the server, which may die before this process can ask for it
EVERY = 0.5  # seconds


def follow(parent: int) -> None:
    """End this process, without publishing anything, as soon as `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(EVERY)
    os._exit(1)


def main() -> None:
    """Do what MONAI Label asked for on the command line."""
    parent = int(os.environ.get(PARENT) or os.getppid())
    threading.Thread(target=follow, args=(parent,), daemon=True).start()
    from monai_unimedvl.label.guard import APP, protect  # seconds, in which the server may die
    from monai_unimedvl.label.quiet import hush

    protect()
    hush()
    importlib.import_module(APP).run_main()


if __name__ == "__main__":
    main()
