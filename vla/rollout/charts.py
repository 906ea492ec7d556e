"""Pictures of numbers as HTML and SVG text: bars with intervals, strips of outcomes, a stacked bar, curves.

Special: no library and no pixels; colours come from the page's style sheet, so light and dark need no second picture.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

type Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 900, 320, 62, 36, 40, 12


def interval_row(name: str, score: Mapping[str, Any], kind: str = "", below: str = "") -> str:
    """One bar of success with its 95 % interval as a whisker.

    Args:
        name: what was scored.
        score: `success`, `low`, `high` in 0..1, `successes`, `episodes`.
        kind: `main` or `other` in a comparison, else empty.
        below: HTML under the bar.
    """
    success, low, high = (100 * score[key] for key in ("success", "low", "high"))
    title = f"{score['successes']} of {score['episodes']}, 95 % interval {low:.1f} to {high:.1f} %"
    return (
        f'<div class="row {kind}"><div class="name">{escape(name)}</div>'
        f'<div class="bar" role="img" aria-label="{title}" title="{title}"><i style="width:{success:.2f}%"></i>'
        f'<u style="left:{low:.2f}%;width:{high - low:.2f}%"></u></div>'
        f'<div class="value"><b>{percent(score["success"])}</b> <span class="soft">{low:.0f}–{high:.0f} % · '
        f"{score['successes']}/{score['episodes']}</span></div>{below}</div>"
    )


def percent(share: float) -> str:
    """'95 %', with a decimal only where it says something."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def outcome_strip(rows: Sequence[Mapping[str, Any]]) -> str:
    """One square for each episode, in the order of the plan: filled, hollow or hatched."""
    squares = []
    for row in rows:
        kind = "error" if row["error"] else "success" if row["success"] else "failure"
        title = f"init state {row['init_state']}: {kind}, {row['steps']} steps"
        squares.append(f'<i class="{kind}" title="{title}"></i>')
    return f'<div class="dots" aria-hidden="true">{"".join(squares)}</div>'


def stacked_bar(parts: Mapping[str, tuple[float, str]]) -> str:
    """A bar of shares with its key. `parts`: {label: (amount, text)}; four at most."""
    total = sum(amount for amount, _ in parts.values()) or 1.0
    bar, key = [], []
    for number, (label, (amount, text)) in enumerate(parts.items(), start=1):
        colour = f"background:var(--p{number})"
        bar.append(f'<i style="flex:{max(amount / total, 0.001):.4f};{colour}" title="{escape(label)}"></i>')
        key.append(
            f'<span class="key small"><i style="{colour}"></i>{escape(label)} '
            f'<span class="soft">{100 * amount / total:.0f} % · {escape(text)}</span></span>'
        )
    return f'<div class="stack">{"".join(bar)}</div><div>{"".join(key)}</div>'


def curves(training: Points, held_out: Points) -> str:
    """Losses against steps, on a logarithmic axis. Points that are not positive are left out."""
    training, held_out = ([(x, y) for x, y in points if y > 0] for points in (training, held_out))
    every = [*training, *held_out]
    if len(every) < 2:
        return ""
    last = max(x for x, _ in every) or 1
    low, high = math.log10(min(y for _, y in every)), math.log10(max(y for _, y in every))
    pad = 0.05 * (high - low) + 0.01
    low, high = low - pad, high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last
        down = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log10(y)) / (high - low)
        return round(across, 1), round(down, 1)

    marks = [_horizontal(at(0, y)[1], y) for y in _ticks(low, high)]
    marks += [
        f'<text x="{at(x, 10**low)[0]}" y="{_HEIGHT - 12}" text-anchor="middle">{x:g}</text>' for x in _steps(last)
    ]
    lines = [_line("raw", [at(*point) for point in training]), _line("val", [at(*point) for point in held_out])]
    dots = [f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>' for x, y in (at(*point) for point in held_out)]
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss against optimiser steps">'
        + "".join([*marks, *lines, *dots])
        + "</svg>"
    )


def _horizontal(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
    return f'{line}<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>'


def _line(kind: str, points: Points) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline class="{kind}" points="{path}"/>' if len(points) > 1 else ""


def _ticks(low: float, high: float) -> list[float]:
    """Round values between 10^low and 10^high: 1, 2, 5 of each decade, or finer where they are few."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1,), (1, 2, 5), tuple(range(10, 100, 5)), tuple(range(100, 1000, 2))):
        scale = 10 ** (len(str(digits[0])) - 1)
        ticks = [digit / scale * 10.0**decade for decade in decades for digit in digits]
        ticks = [float(f"{tick:.4g}") for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: max(1, len(ticks) // 6)]


def _steps(last: float) -> list[float]:
    """Five or so round step numbers from 0 to `last`."""
    rough = last / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * index for index in range(int(last / step + 1e-9) + 1)]
