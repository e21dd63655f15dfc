"""Timing of peers against each other: interleaved rounds, medians and ratios, as a table and as JSON.

Peers take turns within each round, so that a noisy minute hits all of them alike. A run that fails
raises Failed and takes its peer out with a line: a failed run may look like a very fast one.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class Failed(Exception):
    """A peer's run did not do what was timed."""


@dataclass
class Peer:
    """One contestant: `run` does the work once and raises Failed when it did not work. `prepare`, before it,
    is not timed."""

    name: str
    run: Callable[[], None]
    times: list[float] = field(default_factory=list)
    failure: str = ""
    prepare: Callable[[], None] = lambda: None

    def turn(self, *, timed: bool = True) -> None:
        """Run once, unless an earlier run has failed; keep the time in milliseconds."""
        if self.failure:
            return
        try:
            self.prepare()
            begin = time.perf_counter_ns()
            self.run()
        except Failed as error:
            self.failure = str(error)
            self.times.clear()
            return
        if timed:
            self.times.append((time.perf_counter_ns() - begin) / 1e6)


@dataclass
class Contest:
    """Peers doing the same work; the first is ours, ratios are ours over theirs."""

    title: str
    peers: Sequence[Peer]
    per_run: int = 1  # how many of the things timed one run does: times are for each

    def play(self, rounds: int, warmups: int = 2) -> None:
        """Let all peers take turns, `warmups` untimed and `rounds` timed ones."""
        play([self], rounds, warmups)

    def result(self) -> dict[str, Any]:
        """Medians, spread and ratios as plain data."""
        rows: list[dict[str, Any]] = []
        ours = self.peers[0]
        for peer in self.peers:
            if peer.failure or not peer.times:
                rows.append({"peer": peer.name, "left_out": peer.failure or "no runs"})
                continue
            times = sorted(time / self.per_run for time in peer.times)
            row: dict[str, Any] = {
                "peer": peer.name,
                "median_ms": round(statistics.median(times), 2),
                "min_ms": round(times[0], 2),
                "p90_ms": round(times[min(len(times) - 1, len(times) * 9 // 10)], 2),
                "runs": len(times),
            }
            if peer is not ours and ours.times:
                row["ours_over_theirs"] = round(
                    statistics.median(ours.times) / statistics.median(peer.times), 3
                )
            rows.append(row)
        return {"title": self.title, "rows": rows}


def as_rate(result: dict[str, Any], amount: float) -> dict[str, Any]:
    """A contest's result as what was done in a second, where one run does `amount`: more is better, and
    the ratio is still ours over theirs."""
    rows = []
    for row in result["rows"]:
        if "left_out" not in row:
            rest = {key: value for key, value in row.items() if not key.endswith("_ms")}
            row = {**rest, "value": round(amount * 1000 / row["median_ms"], 2)}
            if "ours_over_theirs" in row:
                row["ours_over_theirs"] = round(1 / row["ours_over_theirs"], 3)
        rows.append(row)
    return {**result, "rows": rows}


def play(contests: Sequence[Contest], rounds: int, warmups: int = 2) -> None:
    """Let the peers of all contests take turns; at its turn, a peer goes through the contests one by one."""
    for number in range(warmups + rounds):
        for place in range(len(contests[0].peers)):
            for contest in contests:
                contest.peers[place].turn(timed=number >= warmups)


_COLUMNS = {
    "peer": "",
    "median_ms": "median ms",
    "min_ms": "min",
    "p90_ms": "p90",
    "ours_over_theirs": "ratio",
    "without_containers_kb": "without, KB",
    "first_container_kb": "the first, KB",
    "each_further_kb": "each further, KB",
}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as one Markdown table each; what was left out is said below it."""
    lines: list[str] = []
    for result in results:
        rows = [row for row in result["rows"] if "left_out" not in row]
        columns = [key for key in _COLUMNS if any(key in row for row in rows)]
        lines += ["", f"**{result['title']}**", ""]
        if rows:
            lines.append(f"| {' | '.join(_COLUMNS[key] for key in columns)} |")
            lines.append(f"|---|{'--:|' * (len(columns) - 1)}")
            lines += [f"| {' | '.join(str(row.get(key, '')) for key in columns)} |" for row in rows]
        notes = [f"Left out: {row['peer']}: {row['left_out']}" for row in result["rows"] if "left_out" in row]
        lines += ["", *notes] if notes else []
    return "\n".join(lines)


def matrix(results: Sequence[dict[str, Any]]) -> str:
    """The results as one Markdown table: a line for each contest, a column for each peer, with the ratio of
    ours to theirs; what was left out is said below it."""
    names = list(dict.fromkeys(row["peer"] for result in results for row in result["rows"]))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    notes: dict[str, None] = {}
    for result in results:
        cells = dict.fromkeys(names, "")
        for row in result["rows"]:
            if "left_out" in row:
                notes[f"Left out: {row['peer']}: {row['left_out']}"] = None
                continue
            value = next(row[key] for key in ("median_ms", "peak_mb", "value") if key in row)
            cells[row["peer"]] = f"{value:,.1f}"
            if "ours_over_theirs" in row:
                cells[row["peer"]] += f" ({row['ours_over_theirs']:.2f})"
        lines.append(f"| {result['title']} | {' | '.join(cells.values())} |")
    return "\n".join([*lines, *([""] if notes else []), *notes])


def dump(results: Sequence[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Everything as JSON, with the machine it was measured on."""
    return json.dumps({"machine": machine, "results": list(results)}, indent=2)
