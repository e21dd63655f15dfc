"""Do ledger, roster, runtime, kernel and disk of a house tell the same story?"""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

from house import House
from rawhttp import call


def rows(house: House, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(house.root / "ledger.db") as ledger:
        found = ledger.execute(sql).fetchall()
    ledger.close()
    return found


def listed(house: House) -> dict[str, tuple[str, str]]:
    """id -> (name, state), as `ps -a` tells."""
    found = call(house.socket, "GET", "/containers/json?all=1").json
    return {c["Id"]: (c["Names"][0][1:], c["State"]) for c in found}


def disagreements(house: House) -> list[str]:
    """Where ledger, roster, runtime, kernel and disk tell different stories, as lines."""
    shown = listed(house)
    ids = set(shown)
    up = {i for i, (_, state) in shown.items() if state in ("running", "paused")}
    answers = {i: call(house.socket, "GET", f"/containers/{i}/json") for i in up}
    found = [f"{shown[i]} is listed, but {a.status}" for i, a in answers.items() if a.status != 200]
    if found:
        return found  # one that ended and went since it was listed, or a story to be told again
    inspected = {i: answer.json for i, answer in answers.items()}
    wired = {i for i in up if inspected[i]["HostConfig"]["NetworkMode"] != "none"}

    def same(what: str, told: set[Any], expected: set[Any]) -> None:
        if told != expected:
            found.append(f"{what}: too many {told - expected}, missing {expected - told}")

    def files(path: Path) -> set[str]:
        return {p.name for p in path.glob("*") if p.name not in ("lock", "l")}

    kept = {i: (name, state) for i, name, state in rows(house, "SELECT id, name, state FROM containers")}
    same("ledger", set(kept.items()), set(shown.items()))
    same("operations", set(rows(house, "SELECT kind, subject FROM operations")), set())
    same("snapshot rows", {i for (i,) in rows(house, "SELECT id FROM snapshots")}, ids)
    same("snapshots", files(house.root / "snapshots"), ids)
    same("directories", files(house.root / "containers"), ids)
    same("endpoints", {i for (i,) in rows(house, "SELECT container FROM endpoints")}, wired)
    same("addresses", {i for (i,) in rows(house, "SELECT owner FROM addresses")}, wired)
    same("pins", files(house.run_dir / "ns"), wired)
    same("runtime", files(house.run_dir / "runtime"), up)
    same("bundles", files(house.run_dir / "bundles"), up)
    for parent in Path("/sys/fs/cgroup").glob(f"*/{house.cgroup_parent}"):
        inside = {p.name for p in parent.iterdir() if p.is_dir()}
        if inside - up:
            found.append(f"cgroups of the dead: {parent} {inside - up}")
    mounts = {
        line.split()[4].split("/")[-2]  # RUN/ns/ID/net
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(house.base) in line
    }
    same("mounts", mounts, wired)
    text = subprocess.run(
        house.inside(["ip", "-j", "link"]), capture_output=True, text=True, check=True
    ).stdout
    links = [n["ifname"] for n in json.loads(text) if n["ifname"] not in ("lo", house.bridge)]
    if len(links) != len(wired):
        found.append(f"links {links} of {len(wired)} containers")
    for container_id in up:
        pid = inspected[container_id]["State"]["Pid"]
        if not Path(f"/proc/{pid}/cwd").exists():
            found.append(f"{shown[container_id]} has no process {pid}")
    return found
