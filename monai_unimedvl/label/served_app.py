# SPDX-License-Identifier: Apache-2.0
"""The application that uvicorn serves: `monai_unimedvl.label.served_app:app`."""

from monai_unimedvl.label.door import build
from monai_unimedvl.label.quiet import hush

app = build()
hush()
