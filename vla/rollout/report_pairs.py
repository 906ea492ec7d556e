"""Two policies on the same episodes, for the report: pairs, tests, and what so many pairs could have shown."""

from collections.abc import Mapping
from html import escape
from typing import Any

from vla.rollout.charts import interval_row

_COLUMNS = ("both", "only_b", "only_a", "neither")


def pairs_table(outcome: Mapping[str, Any], main: str, other: str) -> str:
    """What `vla.rollout.compare.compare` says, as HTML; its b is the page's own policy, called `main`."""
    smallest = outcome["smallest_difference"]
    could = (
        f"{outcome['pairs']} pairs are too few to show any difference with 80 % power."
        if smallest is None
        else f"The smallest difference that {outcome['pairs']} pairs, as unlike as these, show with 80 % power is "
        f"{100 * smallest:.1f} points: a smaller one would probably have stayed unseen."
    )
    notes = "; ".join(outcome["remarks"])
    remarks = notes and f'<p class="soft small">With {escape(other)} as a, {escape(main)} as b: {escape(notes)}.</p>'
    return (
        interval_row(main, _score(outcome, "b"), "main")
        + interval_row(other, _score(outcome, "a"), "other")
        + f'<p class="verdict"><b>{_points(outcome["difference"])}</b> for {escape(main)}, 95 % interval '
        f"{_points(outcome['low'])} to {_points(outcome['high'])} (paired bootstrap). McNemar, exact: "
        f"p = {outcome['mcnemar_p']:.2g}; valid also after repeated looks: p = {outcome['anytime_p']:.2g}. {could}</p>"
        + _table(outcome, main, other)
        + remarks
    )


def _score(outcome: Mapping[str, Any], side: str) -> dict[str, Any]:
    return {**outcome[side], "episodes": outcome["pairs"]}


def _table(outcome: Mapping[str, Any], main: str, other: str) -> str:
    head = ("both", f"only {main}", f"only {other}", "neither")
    lines = [*outcome["per_task"].items(), ("all tasks", outcome)]
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>{''.join(f'<td>{counts[key]}</td>' for key in _COLUMNS)}</tr>"
        for name, counts in lines
    )
    cells = "".join(f"<th>{escape(each)}</th>" for each in head)
    return f'<table class="pairs"><tr><th>pairs solved by</th>{cells}</tr>{rows}</table>'


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
