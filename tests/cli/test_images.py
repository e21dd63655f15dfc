"""Images by the command line: pull from a real registry, list, tag, history, inspect, remove."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from clients import Cli
from house import House
from images import Registry, busybox_layers, layer, write_layout

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
CONFIG: dict[str, object] = {
    "Cmd": ["sh", "-c", "echo $WHO; id -u; pwd"],
    "Env": ["PATH=/bin", "WHO=image"],
    "WorkingDir": "/data",
    "Labels": {"by": "us"},
    "ExposedPorts": {"80/tcp": {}},
    "User": "7",
}


def test_pull_list_tag_and_remove(cli: Cli, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_layout(layout, busybox_layers(), CONFIG)
    with Registry(tmp_path / "registry", cli.server.inside([])) as registry:
        reference = registry.push(f"oci:{layout}:latest", "some/multi:1")
        said = cli("pull", reference)
        assert said.status == 0, said
        lines = said.out.splitlines()
        assert lines[0] == "1: Pulling from some/multi"
        assert sum("Pull complete" in line or "Already exists" in line for line in lines) == 3
        assert re.fullmatch("Digest: sha256:[0-9a-f]{64}", lines[-3])
        digest = lines[-3].partition(" ")[2]
        assert lines[-2:] == [f"Status: Downloaded newer image for {reference}", reference]
        again = cli.ok("pull", reference).splitlines()
        assert again[-2:] == [f"Status: Image is up to date for {reference}", reference]
        assert cli.ok("pull", "-q", reference) == reference
        assert cli("pull", f"{reference}@{digest}").status == 0
        missing = cli("pull", reference + "x")
        assert missing.status == 1
        assert "manifest for" in missing.err and "not found" in missing.err
        assert missing.err.count("\n") == 1
        # run pulls what is missing, and says so on stderr
        repository = reference.rpartition(":")[0]
        image = cli.ok("inspect", "-f", "{{.Id}}", reference)
        assert cli.ok("rmi", "-f", image).count("Untagged: ") >= 2
        said = cli("run", "--rm", reference)
        assert (said.status, said.out) == (0, "image\n7\n/data\n")
        assert said.err.startswith(
            f"Unable to find image '{reference}' locally\n1: Pulling from some/multi\n"
        )
        assert cli("run", "--rm", "--pull", "always", reference).status == 0
        said = cli("run", "--rm", "--pull", "never", repository + ":no")
        assert said.status == 125 and f"No such image: {repository}:no" in said.err
        said = cli("run", "--rm", repository + ":no")
        assert said.status == 125 and "not found" in said.err
    shown = cli.ok("images", "--format", "{{.Repository}} {{.Tag}}", repository)
    assert shown == f"{repository} 1"
    assert cli.ok("images", "-q", "--no-trunc", repository) == image
    assert cli.ok("images", "--digests", "--format", "{{.Digest}}", repository) == digest
    cli.ok("tag", reference, "mine/name:2")
    cli.ok("tag", image[7:19], "mine/name")
    tags = sorted(cli.ok("images", "--format", "{{.Repository}}:{{.Tag}}", "mine/name").splitlines())
    assert tags == ["mine/name:2", "mine/name:latest"]
    assert cli.ok("images", "-q", "--filter", "reference=mine/*:2") == image[7:19]
    assert cli.ok("images", "-q", "--filter", "label=by=us").splitlines()[0] == image[7:19]
    about = json.loads(cli.ok("image", "inspect", "mine/name"))[0]
    assert about["Id"] == image and sorted(about["RepoTags"]) == sorted([reference, *tags])
    assert about["RepoDigests"] == [f"{repository}@{digest}"]
    assert about["Config"]["Cmd"] == CONFIG["Cmd"] and about["Config"]["Labels"] == {"by": "us"}
    assert (about["Os"], len(about["RootFS"]["Layers"])) == ("linux", 3)
    rows = cli.ok("history", "--no-trunc", "--format", "{{.CreatedBy}}|{{.Size}}", "mine/name").splitlines()
    assert [row.split("|")[0] for row in rows] == ["layer 2", "layer 1", "layer 0"]
    assert cli.ok("history", "mine/name").splitlines()[0].split("  ")[0] == "IMAGE"
    cli.ok("create", "--name", "user", "mine/name")
    busy = cli("rmi", image[7:19])
    assert busy.status == 1 and "conflict: unable to delete" in busy.err
    assert cli.ok("rmi", "mine/name:2") == "Untagged: mine/name:2"
    assert cli.ok("rm", "user") == "user"
    several = cli("rmi", image[7:19])
    assert several.status == 1 and "image is referenced in multiple repositories" in several.err
    assert cli.ok("rmi", "mine/name") == "Untagged: mine/name:latest"
    gone = cli.ok("rmi", reference).splitlines()
    assert gone[0] == f"Untagged: {reference}" and gone[1] == f"Untagged: {repository}@{digest}"
    assert gone[2] == f"Deleted: {image}"
    assert cli.ok("images", "-q", repository) == ""
    said = cli("rmi", reference)
    assert said.status == 1 and f"No such image: {reference}" in said.err


def test_all_tags_short_ids_and_filters(cli: Cli, tmp_path: Path) -> None:
    number = 0
    found: dict[str, int] = {}
    while True:  # until two ids begin alike
        layout = tmp_path / str(number)
        write_layout(layout, [layer([("n", b"n")])], {"Labels": {"n": str(number)}})
        manifest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
        document = json.loads((layout / "blobs" / manifest.replace(":", "/")).read_text())
        prefix = document["config"]["digest"][7:9]
        if prefix in found:
            break
        found[prefix] = number
        number += 1
    with Registry(tmp_path / "registry", cli.server.inside([])) as registry:
        one = registry.push(f"oci:{tmp_path}/{found[prefix]}", "t/a:1")
        two = registry.push(f"oci:{tmp_path}/{number}", "t/a:2")
        repository = one.rpartition(":")[0]
        said = cli("pull", "-a", one)
        assert said.status and "tag can't be used with --all-tags/-a" in said.err
        said = cli("pull", "-a", repository + "x")
        assert said.status == 1 and f"repository {repository}x not found" in said.err
        lines = cli.ok("pull", "-a", repository).splitlines()
        assert sorted(line for line in lines if "Pulling from" in line) == [
            "1: Pulling from t/a",
            "2: Pulling from t/a",
        ]
        assert lines[-2:] == [f"Status: Downloaded newer image for {repository}", repository]
        assert cli.ok("pull", "-a", "-q", repository) == repository
        again = cli.ok("pull", one).splitlines()  # of an image that is here no layers are told
        assert len(again) == 4 and again[2] == f"Status: Image is up to date for {one}"
        digest = again[1].removeprefix("Digest: ")
        first = cli.ok("pull", f"{repository}@{digest}").splitlines()[0]
        assert first == f"{repository}@{digest}: Pulling from t/a"
    for words in (["rmi", prefix], ["history", prefix], ["tag", prefix, "x:1"]):
        said = cli(*words)
        assert said.status == 1 and f"No such image: {prefix}" in said.err
    said = cli("inspect", prefix)  # looks for all kinds of things
    assert said.status == 1 and f"no such object: {prefix}" in said.err.lower()
    zeros = "0" * 64
    assert re.search(f"No such image: (sha256:)?{zeros}\n", cli("rmi", zeros).err)  # old clients say it so
    for words, says in (
        (["dangling=x"], "invalid filter 'dangling=[x]'"),
        (["reference=["], "syntax error in pattern"),
        (["before=nosuch"], "no such image: nosuch:latest"),
    ):
        said = cli("images", "--filter", *words)
        assert said.status == 1 and says in said.err.lower()
    shown = cli.ok(
        "images", "--format", "{{.CreatedSince}}|{{.Tag}}", "--filter", f"reference={repository}:1"
    )
    assert shown in ("N/A|1", "|1")  # no time is no age
    cli.ok("tag", one, "zz:1")
    cli.ok("tag", one, "aa:1")
    image = cli.ok("inspect", "-f", "{{.Id}}", one)
    assert cli.ok("rmi", "-f", image).splitlines() == [
        f"Untagged: {one}",
        f"Untagged: {repository}@{digest}",
        "Untagged: aa:1",
        "Untagged: zz:1",
        f"Deleted: {image}",
    ]
    assert cli.ok("rmi", two).splitlines()[0] == f"Untagged: {two}"


def test_the_built_in_image_s_table(cli: Cli) -> None:
    cli.ok("run", "--rm", IMAGE, "true")
    header, row = cli.ok("images", IMAGE).splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert re.match(r"nagaya/busybox +latest +[0-9a-f]{12} +.* ago +[\d.]+[kM]B", row)


def test_a_history_without_times(cli: Cli) -> None:
    if cli.name == "docker20" or not isinstance(cli.server, House):
        pytest.skip("only our built-in image tells no time, which old clients take for a date")
    assert (
        cli.ok("history", "--format", "{{.CreatedSince}} {{.CreatedAt}}", IMAGE) == "N/A 1970-01-01T00:00:00Z"
    )
    assert cli.ok("history", "--human=false", IMAGE).splitlines()[0].split()[:4] == [
        "IMAGE",
        "CREATED",
        "AT",
        "CREATED",
    ]


def test_disk_usage(cli: Cli) -> None:
    cli.ok("create", "--name", "idle", "-v", "/spare", IMAGE)
    cli.ok(
        "run", "--rm", "-v", "kept:/data", IMAGE, "dd", "if=/dev/zero", "of=/data/f", "bs=1000", "count=3000"
    )
    cli.ok("run", "-d", "--name", "box", "-v", "kept:/data", IMAGE, "sh", "-c", "echo 12345 > /f; sleep 600")
    template = "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Size}}|{{.Reclaimable}}"
    lines = cli.ok("system", "df", "--format", template).splitlines()
    size = lines[0].split("|")[3]
    assert lines[0] == f"Images|1|1|{size}|0B (0%)" and size.endswith("MB")
    assert lines[1] == "Containers|2|1|6B|0B (0%)"
    count = len(cli.ok("volume", "ls", "-q").splitlines())  # named ones of other tests live on, empty
    assert lines[2] == f"Local Volumes|{count}|2|3MB|0B (0%)"
    cli.ok("rm", "-f", "box")
    line = cli.ok("system", "df", "--format", template).splitlines()[2]
    assert line == f"Local Volumes|{count}|1|3MB|3MB (100%)"
    assert cli.ok("system", "df").splitlines()[0].split() == [
        "TYPE",
        "TOTAL",
        "ACTIVE",
        "SIZE",
        "RECLAIMABLE",
    ]


def test_lists_of_networks_and_volumes(cli: Cli) -> None:
    rows = cli.ok("network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}").splitlines()
    assert {"host host local", "none null local"} <= set(rows) and rows == sorted(rows)
    assert cli.ok("network", "ls").splitlines()[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert len(cli.ok("network", "ls", "-q", "--filter", "name=none")) == 12
    assert cli.ok("network", "inspect", "-f", "{{.Driver}}", "none") == "null"
    cli.ok("create", "--name", "box", "-v", "here:/x", IMAGE)
    assert "local     here" in cli.ok("volume", "ls").splitlines()
    assert cli.ok("volume", "ls", "-q", "--filter", "name=here") == "here"
    assert cli.ok("volume", "inspect", "-f", "{{.Name}}", "here") == "here"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pull", "a/UPPER"], "invalid reference format"),
        (["pull", "a//b"], "invalid reference format"),
        (["pull", "name:"], "invalid reference format"),
        (["pull", "x@sha256:abc"], "invalid "),
        (["run", "--rm", "UPPER"], "invalid reference format"),
        (["tag", "nosuch", "other"], "No such image: nosuch"),
        (["tag", IMAGE, "UPPER"], "must be lowercase"),
        (["image", "inspect", "nosuch"], "o such image: nosuch"),
        (["history", "nosuch"], "No such image: nosuch"),
        (["rmi", "nosuch"], "No such image: nosuch"),
        (["pull", "127.0.0.1:1/a/b"], "connection refused"),
    ],
)
def test_mistakes(cli: Cli, words: list[str], says: str) -> None:
    said = cli(*words)
    assert said.status == (125 if words[0] == "run" else 1)
    assert says.lower() in said.err.lower()
    # one line, beside docker's pointer to its help
    lines = [line for line in said.err.splitlines() if line and "--help" not in line]
    assert len(lines) == 1, lines
