# SPDX-License-Identifier: Apache-2.0
"""HTTP: OpenAI's interface over one model, and a page to look and ask. Needs the extra `serve`.

`application(Service(network, tokenizer, name=..., digest=...))` is an ASGI app; `unimedvl serve` runs it.
Names are found at first use: `keys` is also for those who have not the extra.
"""

from typing import TYPE_CHECKING

from monai_unimedvl.packages import at_first_use

if TYPE_CHECKING:
    from monai_unimedvl.serve.app import application
    from monai_unimedvl.serve.limits import Limits, Refused
    from monai_unimedvl.serve.service import Service

_HOME = {"Limits": "limits", "Refused": "limits", "Service": "service", "application": "app"}

__all__ = ["Limits", "Refused", "Service", "application"]

__getattr__, __dir__ = at_first_use(__name__, _HOME)
