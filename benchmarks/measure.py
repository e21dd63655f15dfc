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


class Failed(Exception):
    """A peer's run did not do what was timed."""


@dataclass
class Peer:
    """One contestant: `run` does the work once and raises Failed when it did not work."""

    name: str
    run: Callable[[], None]
    times: list[float] = field(default_factory=list)
    failure: str = ""

    def turn(self, *, timed: bool = True) -> None:
        """Run once, unless an earlier run has failed; keep the time in milliseconds."""
        if self.failure:
            return
        begin = time.perf_counter_ns()
        try:
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

    def play(self, rounds: int, warmups: int = 2) -> None:
        """Let all peers take turns, `warmups` untimed and `rounds` timed ones."""
        for number in range(warmups + rounds):
            for peer in self.peers:
                peer.turn(timed=number >= warmups)

    def result(self) -> dict[str, object]:
        """Medians, spread and ratios as plain data."""
        rows: list[dict[str, object]] = []
        ours = self.peers[0]
        for peer in self.peers:
            if peer.failure or not peer.times:
                rows.append({"peer": peer.name, "left_out": peer.failure or "no runs"})
                continue
            times = sorted(peer.times)
            row: dict[str, object] = {
                "peer": peer.name,
                "median_ms": round(statistics.median(times), 2),
                "min_ms": round(times[0], 2),
                "p90_ms": round(times[min(len(times) - 1, len(times) * 9 // 10)], 2),
                "runs": len(times),
            }
            if peer is not ours and ours.times:
                row["ours_over_theirs"] = round(statistics.median(ours.times) / statistics.median(times), 3)
            rows.append(row)
        return {"title": self.title, "rows": rows}


def table(results: Sequence[dict[str, object]]) -> str:
    """The results as one Markdown table per contest; what was left out is said below it."""
    lines: list[str] = []
    for result in results:
        lines += [
            "",
            f"### {result['title']}",
            "",
            "| | median ms | min | p90 | ratio |",
            "|---|--:|--:|--:|--:|",
        ]
        notes = []
        rows = result["rows"]
        for row in rows if isinstance(rows, list) else []:
            if "left_out" in row:
                notes.append(f"{row['peer']}: left out: {row['left_out']}")
            else:
                ratio = row.get("ours_over_theirs", "")
                lines.append(
                    f"| {row['peer']} | {row['median_ms']} | {row['min_ms']} | {row['p90_ms']} | {ratio} |"
                )
        lines += ["", *notes] if notes else []
    return "\n".join(lines)


def dump(results: Sequence[dict[str, object]], machine: dict[str, object]) -> str:
    """Everything as JSON, with the machine it was measured on."""
    return json.dumps({"machine": machine, "results": list(results)}, indent=2)
