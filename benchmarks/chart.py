"""Horizontal bars as SVG text, readable on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LABELS, VALUES = 840, 310, 150
"""Pixels: of all, for the labels at the left, for the values at the right."""
BAR, GAP, HEAD = 18, 6, 26
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.head { font-weight: 600; }
.value, .note { fill: #57606a; }
.bar { fill: #8c959f; }
.ours { fill: #1f7a4d; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .value, .note { fill: #9da7b3; }
  .bar { fill: #6e7681; }
  .ours { fill: #3fb950; }
}
"""


@dataclass(frozen=True)
class Bar:
    """A bar; without a value only its words are shown."""

    label: str
    value: float | None
    words: str
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Bars under one headline."""

    title: str
    bars: tuple[Bar, ...]


def render_chart(title: str, groups: Sequence[Group]) -> str:
    """Return the picture; every group has a scale of its own, from 0 to its longest bar."""
    parts: list[str] = []
    y = HEAD
    parts.append(_text(0, y - 8, title, "head"))
    for group in groups:
        y += HEAD
        parts.append(_text(0, y - 8, group.title, "note"))
        most = max([bar.value for bar in group.bars if bar.value is not None], default=0) or 1
        for bar in group.bars:
            length = 0.0 if bar.value is None else (WIDTH - LABELS - VALUES) * bar.value / most
            middle = y + BAR - 4
            parts.append(_text(LABELS - 8, middle, bar.label, "", end=True))
            if length:
                kind = "bar ours" if bar.ours else "bar"
                parts.append(f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>')
            parts.append(_text(LABELS + round(length) + 6, middle, bar.words, "value"))
            y += BAR + GAP
    height = y + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" width="{WIDTH}"'
    return "\n".join([f'{head} height="{height}">', f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>"]) + (
        "\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, kind: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}>{escape(words)}</text>'
