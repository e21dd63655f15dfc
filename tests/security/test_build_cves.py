"""Builds against what has gone wrong elsewhere: each test is named after the hole it looks for."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build, link, run, send, tar, work_left
from house import House

pytestmark = pytest.mark.root

BASE = "FROM nagaya/busybox\n"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        yield started
        assert work_left(started) == []


@pytest.fixture
def bait(tmp_path: Path) -> Path:
    """A directory of the host that no build may read or change."""
    place = tmp_path / "bait"
    place.mkdir()
    (place / "secret").write_text("of the host\n")
    return place


def untouched(bait: Path) -> None:
    assert [path.name for path in bait.iterdir()] == ["secret"]
    assert (bait / "secret").read_text() == "of the host\n"
    assert bait.stat().st_mode & 0o7777 == 0o755 and bait.stat().st_uid == 0


def test_cve_2024_24557_an_image_that_was_loaded_is_no_cache(house: House, tmp_path: Path) -> None:
    """Its history may claim whatever it wants, also FROM scratch and of a HEALTHCHECK."""
    lines = {"Dockerfile": 'FROM scratch\nCOPY x /x\nHEALTHCHECK CMD true\nCMD ["/x"]\n', "x": "good"}
    build(house, tmp_path, lines, "-t", "good")
    saved = house.docker("save", "good").stdout
    house.docker("rmi", "good")
    house.docker("builder", "prune", "-af")
    poisoned = _poisoned(saved)
    assert house.docker("load", input=poisoned).returncode == 0
    said = build(house, tmp_path, lines, "-t", "mine").stdout
    assert "Using cache" not in said
    document = json.loads(house.docker("image", "inspect", "mine").stdout)[0]
    assert document["Config"]["Healthcheck"]["Test"] == ["CMD-SHELL", "true"]
    assert document["Config"]["Cmd"] == ["/x"] and document["Config"].get("Entrypoint") is None


def _poisoned(saved: bytes) -> bytes:
    """The archive of an image with the same history, and an entrypoint of an attacker's."""
    with tarfile.open(fileobj=io.BytesIO(saved)) as source:
        files = {m.name: file.read() for m in source if m.isreg() and (file := source.extractfile(m))}
    (entry,) = json.loads(files["manifest.json"])
    document = json.loads(files[entry["Config"]])
    document["config"]["Entrypoint"] = ["/evil"]
    del document["config"]["Healthcheck"]
    manifest = [{"Config": "config.json", "RepoTags": ["good:latest"], "Layers": entry["Layers"]}]
    return tar(
        ("config.json", json.dumps(document)),
        ("manifest.json", json.dumps(manifest)),
        *((name, files[name]) for name in entry["Layers"]),
    )


@pytest.mark.parametrize(
    "changed",
    [
        'HEALTHCHECK CMD false\nCMD ["a"]',
        'HEALTHCHECK --retries=9 CMD true\nCMD ["a"]',
        'ONBUILD RUN evil\nHEALTHCHECK CMD true\nCMD ["a"]',
        'HEALTHCHECK CMD true\nCMD ["a", "b"]',
        'HEALTHCHECK CMD true\nCMD ["a b"]',
        'HEALTHCHECK CMD true\nENTRYPOINT ["a"]',
    ],
)
def test_cve_2024_24557_what_differs_is_not_cached(house: House, tmp_path: Path, changed: str) -> None:
    build(house, tmp_path, {"Dockerfile": 'FROM scratch\nHEALTHCHECK CMD true\nCMD ["a"]\n'})
    build(house, tmp_path, {"Dockerfile": f"FROM scratch\n{changed}\n"}, "-t", "changed")
    build(house, tmp_path, {}, "-t", "fresh", "--no-cache")
    shown = [
        json.loads(house.docker("image", "inspect", n).stdout)[0]["Config"] for n in ("changed", "fresh")
    ]
    assert shown[0] == shown[1]


def test_cve_2019_13139_no_git_is_run(house: House) -> None:
    for remote in (
        "git://x/--upload-pack=touch /tmp/owned",
        "git@x:y.git#--upload-pack=x",
        "https://x/y.git",
    ):
        status, said = send(house, b"", remote=remote)
        assert status == 501 and "git repository is not supported" in said
    status, said = send(house, tar(("Dockerfile", f"{BASE}ADD https://x.invalid/y.git /x\n")))
    assert "git repository is not supported" in said


@pytest.mark.parametrize("instruction", ["COPY link /x", "ADD link /x", "COPY down/link /x", "COPY l*k /x"])
def test_a_link_of_the_context_leads_nowhere(house: House, bait: Path, instruction: str) -> None:
    context = tar(
        ("Dockerfile", f"{BASE}{instruction}\n"),
        link("link", f"{bait}/secret"),
        link("down", str(bait.parent)),
        link("up", "../../../../../../../../.."),
    )
    status, said = send(house, context, t="leak")
    assert status == 200 and "failed" in said and "of the host" not in said
    untouched(bait)


def test_a_context_that_wants_out(house: House, bait: Path) -> None:
    """Names with "..", files below links, hard links to the host (2021-29136, 2018-15664)."""
    dockerfile = ("Dockerfile", f"{BASE}COPY . /all\n")
    evil: list[list[tuple[str, str] | tarfile.TarInfo]] = [
        [("../../escaped", "x")],
        [link("d", str(bait)), ("d/planted", "x")],
        [link("h", f"{bait}/secret", tarfile.LNKTYPE)],
        [link(".", str(bait)), ("planted", "x")],
        [link("Dockerfile", f"{bait}/secret")],
    ]
    for members in evil:
        status, said = send(house, tar(dockerfile, *members), t="escaped")
        assert "of the host" not in said, (members, said)
        untouched(bait)
        if status == 200 and "Successfully" in said:
            assert "of the host" not in run(
                house, "escaped", "sh", "-c", "cat /all/* /all/*/* 2>/dev/null; true"
            )
    assert not (house.base / "escaped").exists()


def test_cve_2026_55686_destinations_through_links_stay_inside(
    house: House, bait: Path, tmp_path: Path
) -> None:
    place = tmp_path / "context"
    place.mkdir()
    lines = f"""{BASE}RUN ln -s {bait} /out && ln -s / /root-link && ln -s ../../../../../..{bait} /up
WORKDIR /out/made
WORKDIR /up/too
COPY x /out/copied
COPY x /up/below/
COPY d /out/dir/
ADD a.tar /out/
COPY --chown=1:1 x /root-link{bait}/owned
"""
    with tarfile.open(place / "a.tar", "w") as archive:
        archive.add(place, arcname="from-archive")
    build(house, place, {"Dockerfile": lines, "x": "x", "d/y": "y"}, "-t", "inside")
    untouched(bait)
    found = run(house, "inside", "ls", str(bait)).split()
    assert {"below", "copied", "dir", "from-archive", "made", "owned", "too"} <= set(found)


def test_an_archive_in_add_stays_inside(house: House, bait: Path) -> None:
    for evil in (
        tar(("../up", "x")),
        tar(link("escape", str(bait)), ("escape/planted", "x")),
        tar(link("hard", f"../../{bait}/secret", tarfile.LNKTYPE)),
        tar(link("hard", f"{bait}/secret", tarfile.LNKTYPE)),
    ):
        status, said = send(house, tar(("Dockerfile", f"{BASE}ADD a.tar /d/\n"), ("a.tar", evil)))
        assert status == 200 and "Successfully built" not in said, said
        untouched(bait)


def test_cve_2026_41567_no_program_of_the_image_unpacks(house: House, tmp_path: Path) -> None:
    lines = (
        BASE
        + "RUN for x in xz gzip unpigz bzip2 tar; do printf '#!/bin/sh\\ntouch /owned\\ncat' >/bin/$x.new; "
        "chmod 755 /bin/$x.new; mv /bin/$x.new /bin/$x; done\nADD a.tar.xz /x/\n"
    )
    place = tmp_path / "context"
    place.mkdir()
    (place / "f").write_text("unpacked")
    with tarfile.open(place / "a.tar.xz", "w:xz") as archive:
        archive.add(place / "f", arcname="f")
    build(house, place, {"Dockerfile": lines}, "-t", "unpacked")
    assert run(house, "unpacked", "cat", "/x/f") == "unpacked"
    assert "owned" not in run(house, "unpacked", "ls", "/")


@pytest.mark.parametrize("source", ["link", "up", "down/x"])
def test_cve_2024_1753_sources_of_bind_mounts_stay_inside(house: House, bait: Path, source: str) -> None:
    """A link to / in the context or in a stage, read-only and writable."""
    lines = (
        f"FROM nagaya/busybox AS stage\nRUN ln -s / /link && ln -s ../../../.. /up && ln -s {bait} /down "
        f"&& mkdir -p {bait}/x\n{BASE}"
        f"RUN --mount=type=bind,source={source},target=/m,rw touch /m/planted; cat /m{bait}/secret || true\n"
        f"RUN --mount=type=bind,from=stage,source={source},target=/m,rw touch /m/planted; "
        f"cat /m{bait}/secret || true\n"
    )
    context = tar(
        ("Dockerfile", lines),
        link("link", "/"),
        link("up", "../../../../../../.."),
        link("down", str(bait)),
        ("d/f", "f"),
    )
    _, said = send(house, context)
    assert "of the host" not in said
    untouched(bait)


def test_cve_2024_9675_ids_of_cache_mounts_are_no_paths(house: House, bait: Path, tmp_path: Path) -> None:
    depth = "../" * 20
    lines = BASE
    for name in (f"{depth}{bait}", str(bait), "..", ".", "a/../../../..", "x" * 300):
        lines += f"RUN --mount=type=cache,id={name},target=/c test ! -e /c/secret && touch /c/planted\n"
    build(house, tmp_path, {"Dockerfile": lines})
    untouched(bait)
    assert all(len(path.name) < 40 for path in (house.root / "build" / "cache").iterdir())


def test_cve_2024_23651_a_part_of_a_cache_mount_that_becomes_a_link(
    house: House, bait: Path, tmp_path: Path
) -> None:
    """It is looked up inside the cache, whatever another build puts there meanwhile."""
    lines = (
        f"{BASE}RUN --mount=type=cache,id=raced,target=/c ln -s / /c/root; ln -s {bait} /c/part; mkdir /c/d\n"
        f"RUN --mount=type=cache,id=raced,source=root,target=/c cat /c{bait}/secret || touch /c/planted\n"
        "RUN --mount=type=cache,id=raced,source=part,target=/c cat /c/secret || touch /c/planted\n"
    )
    done = build(house, tmp_path, {"Dockerfile": lines}, ok=None)
    assert "of the host" not in done.stdout + done.stderr
    untouched(bait)


def test_cve_2024_23652_places_of_mounts_are_taken_away_inside(
    house: House, bait: Path, tmp_path: Path
) -> None:
    """What was made to be mounted on is exchanged for a link to the host while the command runs."""
    stub = bait.parent / "stub"
    stub.mkdir()
    (stub / "empty").mkdir()
    lines = (
        f"{BASE}RUN --mount=type=tmpfs,target=/a/empty mkdir /b && (mv /a /c || true) && ln -sf {stub} /a\n"
        f"RUN --mount=type=bind,target=/d/e/empty mv /d /f; ln -s {stub} /d\n"
    )
    build(house, tmp_path, {"Dockerfile": lines}, ok=None)
    assert (stub / "empty").is_dir() and bait.is_dir()
    untouched(bait)


def test_cve_2024_23653_privileges_have_to_be_allowed(house: House) -> None:
    status, said = send(house, tar(("Dockerfile", f"{BASE}RUN --security=insecure true\n")))
    assert status == 200 and "security.insecure is not allowed" in said


def test_cve_2026_33747_ids_of_all_kinds(house: House) -> None:
    """Where the client names something, a name that wants out is refused, or no path."""
    context = tar(("Dockerfile", f"{BASE}RUN true\n"))
    for query in (
        {"dockerfile": "../../../../../etc/passwd"},
        {"dockerfile": "/etc/passwd"},
        {"t": "../../x"},
        {"target": "../../x"},
        {"platform": "../../x"},
        {"cgroupparent": "/../../x"},
        {"networkmode": "../../x"},
        {"remote": "file:///etc/passwd"},
    ):
        status, said = send(house, context, **query)
        assert "root:" not in said and ("Successfully built" not in said), (query, status, said)


def test_huge_and_broken_contexts_are_refused(house: House) -> None:
    for archive in (
        b"no archive at all" * 100,
        tar(("Dockerfile", BASE))[:520],
        b"\x1f\x8b" + bytes(100),
        b"\xfd7zXZ\0" + bytes(100),
        b"BZh9" + bytes(100),
    ):
        status, said = send(house, archive)
        assert status == 400, (archive[:20], status, said)
    status, said = send(house, b"")
    assert status == 400 and "Dockerfile" in said


def test_names_that_mean_something_in_layers(house: House) -> None:
    """A file `.wh.x` of a context would hide x wherever the layer is unpacked again."""
    context = tar(("Dockerfile", f"{BASE}COPY . /d/\n"), (".wh.x", ""))
    status, said = send(house, context)
    assert status == 200 and ".wh.x" in said and "Successfully built" not in said
