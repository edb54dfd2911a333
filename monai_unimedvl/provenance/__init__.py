# SPDX-License-Identifier: Apache-2.0
"""What the model makes is marked as synthetic: in the file, in its pixels, and in a manifest beside it.

`save_*` and `write_*` mark, `examine` and `verify` check; docs/PROVENANCE.md says what each kind carries.
Names are found at first use: to check a mark, or to write a picture, neither torch nor MONAI is loaded.
"""

from typing import TYPE_CHECKING

from monai_unimedvl.packages import at_first_use

if TYPE_CHECKING:
    from monai_unimedvl.provenance.check import Verdict, examine, read_mark, verify
    from monai_unimedvl.provenance.facts import NOTICE, SOFTWARE, Facts, manifest_path, sha256
    from monai_unimedvl.provenance.files import (
        png_mark,
        save_image,
        save_page,
        save_text,
        save_volume,
        to_picture,
    )
    from monai_unimedvl.provenance.segmentation import reviewed_segmentation, write_segmentation
    from monai_unimedvl.provenance.series import write_series
    from monai_unimedvl.provenance.structured_report import read_report, write_report

_FILES = {
    "check": ("Verdict", "examine", "read_mark", "verify"),
    "facts": ("NOTICE", "SOFTWARE", "Facts", "manifest_path", "sha256"),
    "files": ("png_mark", "save_image", "save_page", "save_text", "save_volume", "to_picture"),
    "segmentation": ("reviewed_segmentation", "write_segmentation"),
    "series": ("write_series",),
    "structured_report": ("read_report", "write_report"),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "NOTICE",
    "SOFTWARE",
    "Facts",
    "Verdict",
    "examine",
    "manifest_path",
    "png_mark",
    "read_mark",
    "read_report",
    "reviewed_segmentation",
    "save_image",
    "save_page",
    "save_text",
    "save_volume",
    "sha256",
    "to_picture",
    "verify",
    "write_report",
    "write_segmentation",
    "write_series",
]

__getattr__, __dir__ = at_first_use(__name__, _HOME)
