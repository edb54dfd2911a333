# SPDX-License-Identifier: Apache-2.0
"""How often the mark is found, and how often where there is none: 100 pictures, real ones and drawings.

First the four cases that `provenance.examine` tells apart, a file of each kind for every picture; what is
stripped or unmarked went through JPEG at quality 90. Then what the invisible mark outlives, and what not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # tests/, as pytest has it

from _timing import arguments, load_average, report
from provenance.pictures import drawn, real
from provenance.rates import CASES, CHANGES, FACTS, rates, told_apart

from monai_unimedvl.provenance.invisible import FOUND, embed

COUNT, DRAWN = 100, 30


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    load = load_average()
    made = drawn(DRAWN)
    pictures = [*real(COUNT - len(made)), *made]
    start = time.process_time()
    marked, applied = zip(*(embed(pixels, FACTS.id()) for pixels in pictures), strict=True)
    cost = 1000 * (time.process_time() - start) / len(pictures)
    heights = sorted(one.psnr for one in applied if one.psnr is not None)
    counts = told_apart(pictures)
    cells = [["file", *(f"taken for {case}" for case in CASES)]]
    cells += [[case, *(str(counts[case, taken]) for taken in CASES)] for case in CASES]
    about = (
        f"{len(pictures)} pictures of 256 to 640 pixels a side: {len(pictures) - len(made)} real ones"
        f" (scikit-image, pydicom-data, ICBM152), {len(made)} drawings of the nano four times as large."
        f" Marked: {len(heights)}; PSNR {heights[0]:.1f} to {heights[-1]:.1f} dB, median"
        f" {heights[len(heights) // 2]:.1f}; {cost:.0f} ms each. A manifest lies beside no file, and what is"
        " stripped or unmarked went through JPEG at quality 90."
    )
    for name, change in CHANGES.items():
        scores, false, read = rates(pictures, list(marked), change, name.startswith("crop"))
        hits, alarms = (sum(score >= FOUND for score in each) for each in (scores, false))
        about += (
            f"\n- {name}: found {hits}/{len(scores)} (lowest score {min(scores):.1f}, id read in {read}),"
            f" false alarms {alarms}/{len(false)} (highest score {max(false):.1f}; {FOUND:g} is a mark)"
        )
    report(about, cells, options, load)


if __name__ == "__main__":
    main()
