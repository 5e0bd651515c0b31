"""Tables in Markdown, and whether the goals are met."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.databases import POSTGRESQL, SQLITE_NORMAL

API_KEY = "api-key"
AUTHTOKEN = "authtoken"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(value: float, base: float | None) -> str:
    """Return for example ``0.62``; a dash where there is nothing to compare with."""
    return f"{value / base:.2f}" if base else "-"


def admission_report(title: str, result: dict[str, Any]) -> str:
    """Return the tables of one database."""
    wall, cpu = (result["open"][measure] * 1e6 for measure in ("wall", "cpu"))
    parts = [
        f"### {title}",
        f"An open view takes {wall:,.0f} µs ({cpu:,.0f} of CPU). What each adds, in µs:",
        _accepted(result["accepted"]),
        "The last four columns are the statements of a request, as reads+writes.",
    ]
    for name, times in result["refused"].items():
        parts.append(f"Ours, {name}, in µs, the whole answer:")
        parts.append(_refused(times))
    return "\n\n".join(parts)


def _accepted(rows: list[dict[str, Any]]) -> str:
    known = {row["key"]: row for row in rows}
    api_key, authtoken = known.get(API_KEY), known.get(AUTHTOKEN)
    head = ["contender", "wall", "quartiles", "/ api-key (quartiles)", "/ authtoken (quartiles)"]
    head += ["CPU", "/ api-key", "/ authtoken", "accepted", "unknown", "malformed", "missing"]
    lines = []
    for row in sorted(rows, key=lambda row: row["wall"]):
        line = [row["title"]]
        for measure in ("wall", "cpu"):
            line.append(f"{row[measure]:,.0f}")
            if measure == "wall":
                line.append(f"{row['quartile_1']:,.0f}-{row['quartile_3']:,.0f}")
            line += [_compared(row, peer, measure) for peer in (api_key, authtoken)]
        lines.append([*line, *row["queries"].values()])
    return table(head, lines)


def _compared(row: dict[str, Any], peer: dict[str, Any] | None, measure: str) -> str:
    """Return the ratio to ``peer``, and the quartiles of the rounds' ratios."""
    if peer is None:
        return "-"
    first, _, third = row["ratios"][peer["key"]][measure]
    return f"{ratio(row[measure], peer[measure])} ({first:.2f}-{third:.2f})"


def _refused(times: dict[str, dict[str, float]]) -> str:
    missing, revoked = times["missing"], times["revoked"]
    head = ["refusal", "wall", "/ missing", "/ revoked", "CPU", "/ missing", "/ revoked"]
    lines = []
    for kind, time in times.items():
        line = [kind]
        for measure in ("total", "total_cpu"):
            line.append(f"{time[measure]:,.0f}")
            line += [ratio(time[measure], other[measure]) for other in (missing, revoked)]
        lines.append(line)
    return table(head, lines)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A ratio that mustn't be exceeded."""

    database: str
    """On which database."""
    contender: str
    """Which of ours."""
    peer: str
    """Compared with which."""
    measure: str
    """``wall`` or ``cpu``."""
    limit: float
    """How much is allowed."""


GOALS = [
    Goal(database=SQLITE_NORMAL, contender="ours-class", peer=API_KEY, measure="wall", limit=0.65),
    Goal(database=SQLITE_NORMAL, contender="ours", peer=API_KEY, measure="wall", limit=0.75),
    Goal(database=SQLITE_NORMAL, contender="ours-off", peer=API_KEY, measure="wall", limit=0.4),
    Goal(database=POSTGRESQL, contender="ours", peer=AUTHTOKEN, measure="cpu", limit=0.75),
    Goal(
        database=POSTGRESQL, contender="ours-unflushed", peer=AUTHTOKEN, measure="wall", limit=0.95
    ),
    Goal(database=POSTGRESQL, contender="ours", peer=AUTHTOKEN, measure="wall", limit=1.3),
    Goal(database=POSTGRESQL, contender="ours-off", peer=API_KEY, measure="wall", limit=0.75),
]
REFUSAL_GOALS = [
    ("bad checksum", "missing", 1.1),
    # Both ways: a difference would tell which tokens there once were.
    ("unknown", "revoked", 1.1),
    ("revoked", "unknown", 1.1),
]


def admission_goals(results: dict[str, Any]) -> str:
    """Return the goals with what was measured; those that weren't measured are left out."""
    lines = []
    for goal in GOALS:
        rows = {row["key"]: row for row in results.get(goal.database, {}).get("accepted", [])}
        if goal.contender in rows and goal.peer in rows:
            value = rows[goal.contender][goal.measure] / rows[goal.peer][goal.measure]
            what = f"{goal.contender} / {goal.peer}, {goal.measure}"
            lines.append(_goal(goal.database, what, value, goal.limit))
    for database, result in results.items():
        for group, times in result["refused"].items():
            for kind, other, limit in REFUSAL_GOALS:
                value = times[kind]["total"] / times[other]["total"]
                lines.append(_goal(database, f"{group}: {kind} / {other}", value, limit))
    return table(["goal", "database", "measured", "at most", ""], lines)


def _goal(database: str, what: str, value: float, limit: float) -> list[str]:
    verdict = "met" if value <= limit else "missed"
    return [what, database, f"{value:.2f}", f"{limit:.2f}", verdict]
