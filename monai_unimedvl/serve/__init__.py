# SPDX-License-Identifier: Apache-2.0
"""HTTP: OpenAI's interface over one model, and a page to look and ask. Needs the extra `serve`.

`application(Service(network, tokenizer, name=..., digest=...))` is an ASGI app; `unimedvl serve` runs it.
"""

from monai_unimedvl.serve.app import application
from monai_unimedvl.serve.limits import Limits, Refused
from monai_unimedvl.serve.service import Service

__all__ = ["Limits", "Refused", "Service", "application"]
