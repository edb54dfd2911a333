# SPDX-License-Identifier: Apache-2.0
"""Charts of a report as inline SVG: nothing is loaded, colours follow the page, numbers stay text.

Pixels of the drawing are the unit; a chart shrinks with a narrow screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from monai_unimedvl.evaluation.calibration import Reliability, RiskCoverage
from monai_unimedvl.evaluation.tables import LOWER, Row, number

LINE, LEFT, RIGHT, TOP = 24, 186, 112, 14
WIDTH = 900


@dataclass(frozen=True)
class Frame:
    """Where numbers lie on a chart: x from `low` to `high` over pixels `left` to `right`."""

    low: float
    high: float
    left: float
    right: float

    def x(self, value: float) -> float:
        """Pixels from the left; what lies outside is drawn at the border."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.left + min(1.0, max(0.0, share)) * (self.right - self.left)


def scores_chart(rows: Sequence[Row], low: float, high: float, step: float, unit: str = "") -> str:
    """Each row a line: the score with its interval, its baselines as ticks, its ceiling as a bar at the end.

    Args:
        low, high, step: of the axis. unit: said at its end.
    """
    if not rows:
        return ""
    height = TOP + LINE * len(rows) + 30
    frame = Frame(low, high, LEFT, WIDTH - RIGHT)
    parts = [_open(WIDTH, height, f"Scores with intervals, {len(rows)} rows")]
    count = round((high - low) / step)
    for n in range(count + 1):
        x = frame.x(low + n * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{height - 26}"/>')
        parts.append(_text(x, height - 8, f"{low + n * step:g}{unit if n == count else ''}", "mid soft"))
    for n, row in enumerate(rows):
        y = TOP + LINE * n + LINE / 2
        parts.append(_text(LEFT - 14, y + 4, f"{row.task}, {row.section.replace('_', ' ')}", "end"))
        if row.ceiling is not None:
            x = frame.x(row.ceiling)
            parts.append(f'<line class="ceiling" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{y + 8}"/>')
        for name, score in row.baselines.items():
            parts.append(
                f'<circle class="baseline" cx="{frame.x(score):.1f}" cy="{y}" r="4.5">'
                f"<title>{escape(name)} {number(row.metric, score)}</title></circle>"
            )
        shade = verdict(row)
        parts.append(
            f'<line class="whisker {shade}" x1="{frame.x(row.low):.1f}" x2="{frame.x(row.high):.1f}" '
            f'y1="{y}" y2="{y}"/><circle class="value {shade}" cx="{frame.x(row.value):.1f}" cy="{y}" r="5">'
            f"<title>{escape(row.task)} {number(row.metric, row.value)}, n = {row.n}</title></circle>"
        )
        parts.append(
            _text(WIDTH - RIGHT + 14, y + 4, f"{number(row.metric, row.value)}  (n {row.n})", "soft")
        )
    return "".join([*parts, "</svg>"])


def verdict(row: Row) -> str:
    """Whether the whole interval beats the best baseline ("above"), or that beats all of it ("below")."""
    best = row.baseline
    if best is None:
        return ""
    if row.metric in LOWER:
        return "above" if row.high < best[1] else "below" if row.low > best[1] else ""
    return "above" if row.low > best[1] else "below" if row.high < best[1] else ""


def reliability_chart(found: Reliability) -> str:
    """The reliability diagram: share of right answers against confidence, with intervals and numbers."""
    side, left, top = 300, 52, 16
    frame = Frame(0, 1, left, left + side)

    def y(value: float) -> float:
        return top + side * (1 - value)

    parts = [_open(left + side + 24, top + side + 54, "Reliability diagram"), *_axes(frame, y, top, side)]
    parts.append(f'<line class="ideal" x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}"/>')
    most = max(one.n for one in found.bins)
    for one in found.bins:
        x = frame.x(one.confidence)
        radius = 3 + 6 * (one.n / most) ** 0.5
        parts.append(
            f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y(one.low):.1f}" y2="{y(one.high):.1f}"/>'
            f'<circle class="value" cx="{x:.1f}" cy="{y(one.right):.1f}" r="{radius:.1f}"><title>confidence '
            f"{one.confidence:.2f}, right {one.right:.2f}, n = {one.n}</title></circle>"
        )
    parts.append(_text(left + side / 2, top + side + 44, "confidence", "mid soft"))
    parts.append(_text(left + 10, top + 18, f"right answers; calibration error {found.ece:.3f}", "soft"))
    return "".join([*parts, "</svg>"])


def risk_chart(found: RiskCoverage) -> str:
    """Share of wrong answers among those given, against the share that is given."""
    side, left, top = 300, 52, 16
    frame = Frame(0, 1, left, left + side)
    most = max(0.05, float(found.risk.max()))
    high = next(limit for limit in (0.05, 0.1, 0.2, 0.25, 0.5, 1.0) if limit >= most)

    def y(value: float) -> float:
        return top + side * (1 - value / high)

    step = max(1, len(found.coverage) // 200)
    points = list(zip(found.coverage, found.risk, strict=True))
    line = " ".join(f"{frame.x(a):.1f},{y(b):.1f}" for a, b in [*points[::step], points[-1]])
    parts = [_open(left + side + 24, top + side + 54, "Risk against coverage")]
    parts += _axes(frame, y, top, side, high)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    parts.append(_text(left + side / 2, top + side + 44, "share answered", "mid soft"))
    parts.append(_text(left + 10, top + 18, f"wrong among them; area {found.area:.3f}", "soft"))
    return "".join([*parts, "</svg>"])


def _axes(frame: Frame, y, top: float, side: float, high: float = 1.0) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for n in range(6):
        x, value = frame.x(n / 5), high * n / 5
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + side}"/>')
        ends = f'x1="{frame.left}" x2="{frame.right}"'
        parts.append(f'<line class="grid" {ends} y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(_text(x, top + side + 20, f"{n / 5:g}", "mid soft"))
        parts.append(_text(frame.left - 10, y(value) + 4, f"{value:g}", "end soft"))
    return parts


def _open(width: float, height: float, name: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{1.25 * width:.0f}px"'
        f' role="img" aria-label="{escape(name)}">'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


STYLE = """
svg.chart{display:block;width:100%;height:auto;font-size:13px}
svg.chart text{fill:var(--ink)}svg.chart text.soft{fill:var(--soft)}
svg.chart text.mid{text-anchor:middle}svg.chart text.end{text-anchor:end}
svg.chart .grid{stroke:var(--line);stroke-width:1}
svg.chart .ideal{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
svg.chart .whisker{stroke:var(--ink);stroke-width:2.5}
svg.chart .value{fill:var(--ink);stroke:var(--card);stroke-width:1.5}
svg.chart .above{stroke:var(--good)}svg.chart .value.above{fill:var(--good);stroke:var(--card)}
svg.chart .below{stroke:var(--bad)}svg.chart .value.below{fill:var(--bad);stroke:var(--card)}
svg.chart .baseline{fill:none;stroke:var(--soft);stroke-width:1.5}
svg.chart .ceiling{stroke:var(--made);stroke-width:2.5}
svg.chart .curve{fill:none;stroke:var(--ink);stroke-width:2}
.chartcard{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;
margin-top:14px;overflow-x:auto}.chartcard svg{min-width:560px}
.charts{display:flex;flex-wrap:wrap;gap:16px;margin-top:14px}
.charts .chartcard{margin:0;flex:1 1 340px}.charts .chartcard svg{min-width:280px}
.key{font-size:13px;color:var(--soft);margin:8px 0 0}
ul.notes{max-width:900px;margin:12px 0 0;padding-left:20px}
ul.notes li{margin:4px 0}
"""
