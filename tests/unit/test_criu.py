"""What criu is told: a checkpoint's and a restore's command line as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nagaya.errors import InvalidArgument
from nagaya.runtime import criu
from nagaya.runtime.arguments import Option, parse
from nagaya.runtime.verbs import checkpoint, restore


def _record(tmp_path: Path) -> dict[str, Any]:
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var" / "run").symlink_to("/run")
    return {
        "pid": 77,
        "rootfs": str(root),
        "cgroup": {"version": 1, "paths": {"memory": "/sys/fs/cgroup/memory/x"}},
        "config": {
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/var/run/data", "type": "bind", "source": "/srv/data", "options": ["rbind"]},
            ],
            "linux": {
                "maskedPaths": ["/proc/kcore"],
                "namespaces": [{"type": "mount"}, {"type": "cgroup"}, {"type": "pid"}],
            },
        },
    }


def _options(table: list[Option], *argv: str) -> dict[str, Any]:
    options, rest = parse(list(argv), table)
    assert rest == []
    checkpoint.absolute(options)
    return options


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    options = _options(checkpoint.OPTIONS, "--image-path", "/i", "--work-path", "/w")
    argv = criu.dump_argv(_record(tmp_path), options, "/sys/fs/cgroup/freezer/x", ["/proc/kcore"])
    assert argv == [
        *("criu", "dump", "--images-dir", "/i", "-v4", "--no-default-config", "--work-dir", "/w"),
        *("--manage-cgroups", "--empty-ns", "net", "--tree", "77", "--root", f"{tmp_path}/root"),
        *("--log-file", "dump.log", "--freeze-cgroup", "/sys/fs/cgroup/freezer/x"),
        # the name that the kernel has for it: /var/run is a link
        *("--external", "mnt[/run/data]:/run/data", "--external", "mnt[/proc/kcore]:/dev/null"),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["--leave-running"], ["--leave-running"]),
        (["--tcp-established"], ["--tcp-established"]),
        (["--tcp-skip-in-flight"], ["--skip-in-flight"]),
        (["--link-remap"], ["--link-remap"]),
        (["--ext-unix-sk"], ["--ext-unix-sk"]),
        (["--shell-job"], ["--shell-job"]),
        (["--file-locks"], ["--file-locks"]),
        (["--auto-dedup"], ["--auto-dedup"]),
        (["--lazy-pages", "--status-fd", "9"], ["--lazy-pages"]),
        (["--lazy-pages", "--status-fd", "9"], ["--status-fd", "9"]),
        (["--manage-cgroups-mode", "strict"], ["--manage-cgroups=strict"]),
        (["--empty-ns", "network"], ["--empty-ns", "net"]),
        (["--page-server", "[::1]:99"], ["--page-server", "--address", "::1", "--port", "99"]),
        (["--parent-path", "../one"], ["--prev-images-dir", "../one", "--track-mem"]),
    ],
)
def test_options_of_a_checkpoint(tmp_path: Path, ours: list[str], theirs: list[str]) -> None:
    argv = criu.dump_argv(_record(tmp_path), _options(checkpoint.OPTIONS, *ours), "", [])
    assert any(argv[at : at + len(theirs)] == theirs for at in range(len(argv)))


def test_a_pre_dump_has_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = criu.dump_argv(_record(tmp_path), _options(checkpoint.OPTIONS, "--pre-dump"), "", ["/proc/kcore"])
    assert argv[1] == "pre-dump" and "--external" not in argv
    assert argv[3] == f"{tmp_path}/checkpoint"  # as runc


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--manage-cgroups-mode", "x"], "invalid manage-cgroups-mode value"),
        (["--empty-ns", "pid"], 'namespace "pid" is not supported'),
        (["--page-server", "here"], "Use --page-server ADDRESS:PORT"),
        (["--page-server", ":1"], "Use --page-server ADDRESS:PORT"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, argv: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        criu.dump_argv(_record(tmp_path), _options(checkpoint.OPTIONS, *argv), "", [])


def test_a_restore(tmp_path: Path) -> None:
    options = _options(
        restore.OPTIONS, "--image-path", "/i", "--tcp-established", "--lsm-profile", "apparmor:p", "--detach"
    )
    groups = {"memory": "/x", "": "/x"}
    descriptors = ["/dev/null", "pipe:[12]", "pipe:[13]"]
    argv = criu.restore_argv(_record(tmp_path), options, "/s/root", "/s/pid", groups, descriptors, {})
    assert argv == [
        *("criu", "restore", "--images-dir", "/i", "-v4", "--no-default-config"),
        *("--manage-cgroups", "--empty-ns", "net", "--tcp-established", "--lsm-profile", "apparmor:p"),
        *("--root", "/s/root", "--log-file", "restore.log", "--pidfile", "/s/pid"),
        *("--restore-detached", "--restore-sibling", "--evasive-devices"),
        *("--cgroup-root", "memory:/x", "--cgroup-root", "/x"),
        *("--external", "mnt[/run/data]:/srv/data", "--external", "mnt[/dev/null]:/dev/null"),
        *("--inherit-fd", "fd[1]:pipe:[12]", "--inherit-fd", "fd[2]:pipe:[13]"),
    ]


def test_joined_namespaces(tmp_path: Path) -> None:
    record = _record(tmp_path)
    own = "/proc/self/ns/net"
    record["config"]["linux"]["namespaces"] = [
        {"type": "network", "path": own},
        {"type": "ipc", "path": "/proc/1/ns/ipc"},
    ]
    dump = criu.dump_argv(record, _options(checkpoint.OPTIONS), "", [])
    assert f"net[{os.stat(own).st_ino}]:extRootNetNS" in dump
    back = criu.restore_argv(record, _options(restore.OPTIONS), "/r", "/p", {}, [], {"network": 7})
    assert "fd[7]:extRootNetNS" in back and "ipc:/proc/1/ns/ipc" in back
    record["config"]["linux"]["namespaces"] = [{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]
    with pytest.raises(InvalidArgument, match="cgroup namespace"):
        criu.joined(record["config"])


@pytest.mark.parametrize("value", ["", "/no/such/file"])
def test_a_configuration_of_criu_by_annotation(tmp_path: Path, value: str) -> None:
    record = _record(tmp_path)
    record["config"]["annotations"] = {"org.criu.config": value}
    assert "--config" not in criu.dump_argv(record, _options(checkpoint.OPTIONS), "", [])
    (tmp_path / "conf").write_text("")
    record["config"]["annotations"] = {"org.criu.config": f"{tmp_path}/conf"}
    assert f"{tmp_path}/conf" in criu.dump_argv(record, _options(checkpoint.OPTIONS), "", [])
