"""What the benchmarks count: a run that failed is no time, peers that are absent get a line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bench_cri
import measure
import runtime
import stage


def peer(name: str, run: Callable[[], None] = lambda: None, *times: float) -> measure.Peer:
    return measure.Peer(name, run, list(times))


def test_peers_take_turns_and_warm_up() -> None:
    order: list[str] = []
    peers = [peer(name, lambda name=name: order.append(name)) for name in "ab"]  # type: ignore[misc]
    contest = measure.Contest("x", peers)
    contest.play(3, warmups=1)
    assert order == list("abababab")
    assert [len(one.times) for one in peers] == [3, 3]


def test_lives_are_interleaved_and_what_is_prepared_is_not_timed() -> None:
    order: list[str] = []
    contests = []
    for verb in ("create", "delete"):
        peers = [peer(name, lambda word=f"{verb} {name}": order.append(word)) for name in "ab"]  # type: ignore[misc]
        contests.append(measure.Contest(verb, peers))
    waited = contests[1].peers[1]
    waited.prepare = lambda: time.sleep(0.05)
    measure.play(contests, 1, warmups=1)
    assert order == ["create a", "delete a", "create b", "delete b"] * 2
    assert waited.times[0] < 40

    def never() -> None:
        raise measure.Failed("still there")

    waited.prepare = never
    measure.play(contests, 1, warmups=0)
    assert waited.failure == "still there" and waited.times == []


def test_one_table_of_all_contests() -> None:
    ran = measure.Contest("`run`", [peer("ours", lambda: None, 6), peer("b", lambda: None, 12)])
    gone = measure.Peer("b", lambda: None, failure="exit code 1")
    results = [ran.result(), measure.Contest("`kill`", [peer("ours", lambda: None, 8.04), gone]).result()]
    results.append({"title": "memory", "rows": [{"peer": "ours", "peak_mb": 9}]})
    assert measure.matrix(results).split("\n") == [
        "| | ours | b |",
        "|---|--:|--:|",
        "| `run` | 6.0 | 12.0 (0.50) |",
        "| `kill` | 8.0 |  |",
        "| memory | 9.0 |  |",
        "",
        "Left out: b: exit code 1",
    ]


def test_rates_are_the_better_the_more_and_their_ratio_is_ours_over_theirs() -> None:
    gone = measure.Peer("c", lambda: None, failure="exit code 1")
    timed = measure.Contest(
        "copy, MB/s", [peer("ours", lambda: None, 50), peer("b", lambda: None, 100), gone]
    )
    assert measure.matrix([measure.as_rate(timed.result(), 300)]).split("\n") == [
        "| | ours | b | c |",
        "|---|--:|--:|--:|",
        "| copy, MB/s | 6,000.0 | 3,000.0 (2.00) |  |",
        "",
        "Left out: c: exit code 1",
    ]


def test_a_runtime_that_is_not_there_is_left_out_of_every_contest() -> None:
    played = runtime.contests({"nagaya-oci": "not built", "runc": "not installed"})
    titles = [contest.title for contest in played]
    assert titles[:3] == ["`run`, ms", "`run`, Docker's seccomp profile, ms", "`create`, ms"]
    assert len(titles) == len(runtime.VERBS)
    measure.play(played, 1)
    results = [*(contest.result() for contest in played), runtime.memory({"runc": "not installed"})]
    assert all("left_out" in row for result in results for row in result["rows"])


def test_a_failed_run_takes_its_peer_out_with_all_its_times() -> None:
    runs = 0

    def breaks() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise measure.Failed("exit code 1: no cgroups")

    contest = measure.Contest("x", [peer("ours"), peer("theirs", breaks)])
    contest.play(5, warmups=0)
    ours, theirs = contest.result()["rows"]
    assert ours["runs"] == 5
    assert theirs == {"peer": "theirs", "left_out": "exit code 1: no cgroups"}
    assert runs == 3, "it has no more turns"
    text = measure.table([contest.result()])
    assert "Left out: theirs: exit code 1: no cgroups" in text and "| theirs" not in text


def test_medians_ratios_and_times_for_each() -> None:
    contest = measure.Contest("x", [peer("ours", lambda: None, 4, 8, 6), peer("b", lambda: None, 12, 12)], 2)
    ours, other = contest.result()["rows"]
    assert (ours["median_ms"], ours["min_ms"], ours["p90_ms"]) == (3, 2, 4)
    assert (other["median_ms"], other["ours_over_theirs"]) == (6, 0.5)
    assert "| ours | 3.0 | 2.0 | 4.0 |  |" in measure.table([contest.result()])
    told = json.loads(measure.dump([contest.result()], {"cpu": "z"}))
    assert told["machine"] == {"cpu": "z"} and told["results"][0]["rows"][1]["ours_over_theirs"] == 0.5


def test_a_command_counts_by_its_exit_code(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    run = stage.Command(
        tmp_path,
        "/bin/sh",
        "-c",
        f"echo {{n}} >>{seen}; [ {{n}} -lt 3 ] || echo why >&2; exit $(({{n}} / 3))",
    )
    run()
    run()
    with pytest.raises(measure.Failed, match="exit code 1: why"):
        run()
    assert seen.read_text().split() == ["1", "2", "3"]
    with pytest.raises(measure.Failed, match="nagt-no-such-program is not installed"):
        stage.need("nagt-no-such-program")


def test_steps_of_pods_are_compared_with_the_last_stack(tmp_path: Path) -> None:
    nodes = [bench_cri.Node(tmp_path, name, name, 0, top=tmp_path) for name in ("ours", "gone", "theirs")]
    nodes[1].failure = "RunPodSandbox: no such network"
    took = bench_cri.result("StopContainer, ms", nodes, [[5, 9, 4], [], [10, 20]], "ms")
    rate = bench_cri.result("pods/s", nodes, [[6], [], [2]], "pods/s")
    assert measure.matrix([took, rate]).split("\n") == [
        "| | ours | gone | theirs |",
        "|---|--:|--:|--:|",
        "| StopContainer, ms | 5.0 (0.33) |  | 15.0 |",
        "| pods/s | 6.0 (3.00) |  | 2.0 |",
        "",
        "Left out: gone: RunPodSandbox: no such network",
    ]


def test_a_stack_is_counted_by_its_cgroup(tmp_path: Path) -> None:
    node = bench_cri.Node(tmp_path, "ours", "n", 0, top=tmp_path)
    place = tmp_path / "cpuacct" / tmp_path.name / "n"
    (place / "cpuacct.usage").write_text("2500000\n")
    (place / "daemon" / "cgroup.procs").write_text("12\n15\n")
    assert (node.cpu(), node.processes()) == (2.5, [12, 15])
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    (tmp_path / "b").mkdir()
    node = bench_cri.Node(tmp_path / "b", "ours", "n", 0, top=tmp_path)
    (tmp_path / "b" / "n" / "cpu.stat").write_text("usage_usec 7000\nuser_usec 1\n")
    assert node.cpu() == 7
