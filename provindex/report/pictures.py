"""Pictures as SVG, drawn from documents: a family, corresponding layers, signals against chance.

Colors are classes that the page defines, so that one picture serves light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from provindex.common.errors import printable

Document = dict[str, Any]
ROW = 4  # models side by side; each row more is drawn below
BOX, GAP, HEIGHT, RISE = 200, 16, 46, 44
LETTERS = 25  # of an id in a box; the whole is in its tooltip
MOST = 12  # models of one role that are drawn


def family(own: str, links: Sequence[Document]) -> str:
    """A model between its ancestors (above) and descendants (below); relatives of unknown role beside it, below."""
    above = [link for link in links if link["direction"] == "ancestor"]
    below = [link for link in links if link["direction"] == "descendant"]
    rest = [link for link in links if link["direction"] not in ("ancestor", "descendant")]
    width = ROW * BOX + (ROW - 1) * GAP
    parts: list[str] = []
    y, ends = _boxes(above, 0, width)
    middle = y
    parts += ends.drawn
    parts.append(_box(own, "", (width - BOX) / 2, middle, "box own"))
    x = width / 2
    parts += [_arrow(at, bottom, x, middle) for at, _, bottom in ends.places if bottom + RISE >= middle]
    y = middle + HEIGHT + (RISE if below or rest else 0)
    for group in (below, rest):
        first = y
        y, ends = _boxes(group, y, width)
        if group is rest and rest and below:  # a line would pass through what stands between
            parts.append(f'<text class="soft" x="0" y="{first - 10:g}">Related, and which came first is open:</text>')
            ends.places.clear()
        draw = _line if group is rest else _arrow
        parts += [draw(x, middle + HEIGHT, at, top) for at, top, _ in ends.places if top == first]
        parts += ends.drawn
    return _svg(width, y - (RISE if below or rest else 0), parts, f"Family of {own}")


class _Drawn:
    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.places: list[tuple[float, float, float]] = []  # the middle of a box, its top and bottom


def _boxes(links: Sequence[Document], y: float, width: float) -> tuple[float, _Drawn]:
    """Rows of boxes from a height on; where the next row begins."""
    out = _Drawn()
    for start in range(0, min(len(links), MOST), ROW):
        row = links[start : min(start + ROW, MOST)]
        x = (width - len(row) * BOX - (len(row) - 1) * GAP) / 2
        for link in row:
            name = f"{link['model_id']} [{link['variant']}]" if link.get("variant") else link["model_id"]
            out.drawn.append(_box(name, f"{link['relation'] or ''} - {link['license'] or 'license not known'}", x, y))
            out.places.append((x + BOX / 2, y, y + HEIGHT))
            x += BOX + GAP
        y += HEIGHT + RISE
    if len(links) > MOST:
        out.drawn.append(f'<text class="soft" x="0" y="{y - RISE + 16:g}">and {len(links) - MOST} more</text>')
        y += 20
    return y, out


def _box(name: str, said: str, x: float, y: float, kind: str = "box") -> str:
    lines = [(name, "", 20)] + ([(said, "soft", 37)] if said else [])
    texts = "".join(
        f'<text class="{style}" x="{x + 8:g}" y="{y + (down if said else down + 8):g}">{_shown(_cut(line))}</text>'
        for line, style, down in lines
    )
    return (
        f'<g><title>{_shown(name)}</title><rect class="{kind}" x="{x:g}" y="{y:g}" width="{BOX}" height="{HEIGHT}" '
        f'rx="6"/>{texts}</g>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, end: str = "") -> str:
    half = (y + to_y) / 2
    return f'<path class="edge" d="M{x:g} {y:g} C{x:g} {half:g} {to_x:g} {half:g} {to_x:g} {to_y:g}"{end}/>'


def _arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    head = f"{to_x - 5:g},{to_y - 8:g} {to_x + 5:g},{to_y - 8:g} {to_x:g},{to_y:g}"
    return _line(x, y, to_x, to_y - 7) + f'<polygon class="head" points="{head}"/>'


def layers(found: Sequence[Document]) -> str:
    """Bands between the layers of two models that correspond, a pair of bars for each stack."""
    stacks = sorted({one["stack"] for one in found})
    parts, x, height = list[str](), 0.0, 0.0
    for stack in stacks:
        ranges = [one for one in found if one["stack"] == stack]
        last = max(max(one["from"][1], one["to"][1]) for one in ranges)
        step = min(16.0, 320.0 / (last + 1))
        parts.append(f'<text class="soft" x="{x:g}" y="14">{_shown(stack)}</text>')
        for side, left in (("from", x), ("to", x + 180)):
            tall = (max(one[side][1] for one in ranges) + 1) * step
            height = max(height, tall)
            parts.append(f'<rect class="box" x="{left:g}" y="24" width="24" height="{tall:g}"/>')
        for one in ranges:
            a, b, c, d = (24 + step * n for n in (one["from"][0], one["from"][1] + 1, one["to"][0], one["to"][1] + 1))
            points = f"{x + 24:g},{a:g} {x + 180:g},{c:g} {x + 180:g},{d:g} {x + 24:g},{b:g}"
            told = f"layers {one['from'][0]} to {one['from'][1]}: {one['to'][0]} to {one['to'][1]}"
            parts.append(f'<polygon class="map" points="{points}"><title>{_shown(told)}</title></polygon>')
            parts.append(f'<text class="soft" x="{x + 210:g}" y="{(c + d) / 2 + 4:g}">{_shown(told)}</text>')
        x += 420
    return _svg(x, 24 + height + 4, parts, "Layers that correspond") if parts else ""


def strips(signals: Mapping[str, Document]) -> str:
    """A row for each signal that has a value: what unrelated pairs have, and this one. "" without any."""
    there = {name: signal for name, signal in signals.items() if signal["value"] is not None}
    if not there:
        return ""
    left, long, step = 70, 480, 26
    parts = [f'<text class="soft" x="{left + at * long:g}" y="12">{at:g}</text>' for at in (0.0, 0.5, 1.0)]
    for number, (name, signal) in enumerate(there.items()):
        y = 30 + number * step
        parts.append(f'<text x="0" y="{y + 4}">{_shown(name)}</text>')
        parts.append(f'<path class="edge" d="M{left} {y} H{left + long}"/>')
        chance = signal["chance"] or {}
        top = chance.get("p999") if chance.get("p999") is not None else chance.get("p99")
        if chance.get("median") is not None and top is not None:
            start, stop = (left + _within(at) * long for at in (chance["median"], top))
            width = max(stop - start, 2)
            parts.append(f'<rect class="band" x="{start:.1f}" y="{y - 5}" width="{width:.1f}" height="10"/>')
        parts.append(f'<circle class="dot" cx="{left + _within(signal["value"]) * long:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="soft" x="{left + long + 14}" y="{y + 4}">{signal["value"]:.4g}</text>')
    return _svg(left + long + 80, 30 + len(there) * step, parts, "Signals against chance")


def _within(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 -2 {width + 4:g} {height + 4:g}" width="{width + 4:g}" '
        f'role="img"><title>{_shown(title)}</title>{"".join(parts)}</svg>'
    )


def _cut(said: str) -> str:
    """What a box has room for: of a long id the name without its organisation."""
    said = said if len(said) <= LETTERS else said.rpartition("/")[2]
    return said if len(said) <= LETTERS else said[: LETTERS - 1] + "\u2026"


def _shown(value: str) -> str:
    return escape(printable(str(value)))
