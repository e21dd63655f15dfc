"""nagayad's configuration: file and flags, and one line that names the key at fault."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from house import python_main

from nagaya.daemon import checks, config, locks
from nagaya.errors import FailedPrecondition, InvalidArgument, KernelError

EXAMPLE = Path(__file__).resolve().parents[2] / "etc/nagayad.toml"


def load(tmp_path: Path, text: str, *flags: str) -> config.Config:
    path = tmp_path / "n.toml"
    path.write_text(text)
    return config.load(["--config", str(path), *flags])[0]


def test_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, "")
    assert found == config.Config()
    assert (found.socket, found.pid_path) == ("/run/nagaya/docker.sock", "/run/nagaya/nagayad.pid")
    settings = found.settings()
    assert (settings.root, settings.run, settings.bridge) == ("/var/lib/nagaya", "/run/nagaya", "nagaya0")
    assert settings.log_max_size == 20 << 20


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = 'bridge = "br"\nmtu = 1400\ndns = ["1.1.1.1"]\n[registries]\ninsecure = ["a:5000"]\nretries = 2\n'
    found = load(tmp_path, text, "--mtu", "1300", "--no-icc", "--dns", "9.9.9.9", "--dns", "8.8.8.8")
    assert (found.bridge, found.mtu, found.icc, found.dns) == ("br", 1300, False, ("9.9.9.9", "8.8.8.8"))
    registry = found.registry_config()
    assert (registry.insecure, registry.retries) == (("a:5000",), 2)


def test_paths_on_the_command_line_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(tmp_path, "", "--root", "r", "--run", "n").root == str(tmp_path / "r")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1", "colour"),
        ("[registries]\ninsecre = []", "registries.insecre"),
        ('mtu = "big"', "mtu"),
        ("bridge = 5", "bridge"),
        ('dns = "1.1.1.1"', "dns"),
        ('dns = ["no address"]', "dns"),
        ('root = "relative"', "root"),
        ('root = "/with:colon"', "root"),
        ('run = "/"', "run"),
        ('log-level = "loud"', "log-level"),
        ('log-max-size = "huge"', "log-max-size"),
        ("log-max-file = 0", "log-max-file"),
        ("stop-timeout = -1", "stop-timeout"),
        ('cgroup-driver = "magic"', "cgroup-driver"),
        ('cgroup-parent = "../up"', "cgroup-parent"),
        ('cgroup-parent = ""', "cgroup-parent"),
        ('[runtimes]\nrunc = "relative"', "runtimes.runc"),
        ('[runtimes]\nnagaya = "/bin/x"', "runtimes.nagaya"),
        ('default-runtime = "other"', "default-runtime"),
        ('docker-socket = "/' + "x" * 107 + '"', "docker-socket"),
        ('bip = "10.0.0.0"', "bip"),
        ('default-address-pool = ["x"]', "default-address-pool"),
        ('nft-table = "a b"', "nft-table"),
        ('bridge = "a-name-of-16-byte"', "bridge"),
        ("mtu = 67", "mtu"),
        ("[default-ulimits]\nfiles = [1, 1]", "default-ulimits.files"),
        ("[default-ulimits]\nnofile = [2, 1]", "default-ulimits.nofile"),
        ('[default-ulimits]\nnofile = ["a", 1]', "default-ulimits"),
        ("[registries]\nretries = -1", "registries.retries"),
        ('[registries]\nretries = "4"', "registries.retries"),
        ("[registries]\ndownloads = 0", "registries.downloads"),
        ("[registries]\nunpacks = 0", "registries.unpacks"),
        ("[registries]\nconnect-timeout = 0", "registries.connect-timeout"),
        ("[registries]\nread-timeout = -1.5", "registries.read-timeout"),
        ("[registries]\nread-timeout = nan", "registries.read-timeout"),
        ('[registries]\ninsecure = ["a b"]', "registries.insecure"),
        ('[registries]\ninsecure = ["http://a"]', "registries.insecure"),
        ('[registries]\ndocker-config = "config.json"', "registries.docker-config"),
        ('[registries]\ndocker-config = "/no/such/file"', "registries.docker-config"),
        ('[registries.mirrors]\n"docker.io" = ["x"]', "registries.mirrors.docker.io"),
        ('[registries.mirrors]\n"docker.io" = ["ftp://x"]', "registries.mirrors.docker.io"),
        ('[registries.mirrors]\n"docker.io" = "https://x"', "registries.mirrors"),
        ('[registries.mirrors]\n"https://docker.io" = ["https://x"]', "registries.mirrors.https://docker.io"),
        ('[registries.ca]\n"a:5000" = "/no/such/ca.pem"', "registries.ca.a:5000"),
        ('[registries.ca]\n"a:5000" = "/etc/passwd"', "registries.ca.a:5000"),
        ('[registries.ca]\n"a:5000" = "ca.pem"', "registries.ca.a:5000"),
        ('init-path = "/no/such/init"', "init-path"),
        ('init-path = "/etc/passwd"', "init-path"),
        ('init-path = "catatonit"', "init-path"),
        ('[runtimes]\nx = "/no/such/runtime"', "runtimes.x"),
        ('[runtimes]\nx = "/tmp"', "runtimes.x"),
        ('docker-socket = "run/docker.sock"', "docker-socket"),
        ('docker-socket = "/no/such/dir/docker.sock"', "docker-socket"),
        ('cri-socket = "cri"', "cri-socket"),
        ('pidfile = "x.pid"', "pidfile"),
        ('pidfile = "/no/such/dir/x.pid"', "pidfile"),
        ('cni-conf-dir = "net.d"', "cni-conf-dir"),
        ('group = "a b"', "group"),
        ('dns-search = ["a b"]', "dns-search"),
        ('dns-option = ["ndots: 2"]', "dns-option"),
        ("stop-timeout = 99999999999", "stop-timeout"),
        ("icc = 1", "icc"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(tmp_path, text)
    told = "unknown key" if "unknown key" in str(caught.value) else f"{named}: "
    assert str(caught.value).startswith(f"{tmp_path}/n.toml: {told}") and named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="command line: log-level"):
        load(tmp_path, 'bridge = "b"', "--log-level", "loud")


@pytest.mark.parametrize("text", ["= 1", "a = [", "\0", 'a = "\\x"'])
def test_bad_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"n\.toml") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no such file"):
        config.load(["--config", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("7b", 7), ("2K", 2048), ("20m", 20 << 20), ("1gb", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert checks.parse_size(text) == size


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "n.toml").write_text("colour = 1\n")
    argv = [*python_main("nagaya.daemon.main"), "--config", str(tmp_path / "n.toml")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr == f"nagayad: {tmp_path}/n.toml: unknown key 'colour'\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--nosuch"], "command line: unrecognized arguments: --nosuch (nagayad --help shows the flags)"),
        (["--mtu", "big"], "command line: argument --mtu: invalid int value: 'big' "),
        (["--init-path", "/no/such/init"], "command line: init-path: /no/such/init: no such file\n"),
        (["--config", "/no/such/file"], "/no/such/file: no such file\n"),
    ],
)
def test_mistakes_of_flags(flags: list[str], says: str) -> None:
    argv = [*python_main("nagaya.daemon.main"), *flags]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"nagayad: {says}") and result.stderr.count("\n") == 1


def test_validate_checks_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "n.toml").write_text(f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\n')
    argv = [*python_main("nagaya.daemon.main"), "--validate", "--config", str(tmp_path / "n.toml")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "configuration OK\n")
    assert os.listdir(tmp_path) == ["n.toml"]
    result = subprocess.run([*argv, "--mtu", "1"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and result.stderr.startswith("nagayad: command line: mtu: ")


def test_the_example_has_every_key_and_its_default(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text().splitlines()
    keyed = [line for line in lines if line and not line.startswith("# ") and line != "#"]
    examples = ("#kata", "#nofile", '#"docker.io"', '#"registry')
    values = tomllib.loads("\n".join(x.removeprefix("#") for x in keyed if not x.startswith(examples)))
    found = list(values) + [f"registries.{key}" for key in values["registries"]]
    assert sorted(found) == sorted(config.keys())
    assert config.make(values, "example") == config.Config()
    # and, as it is shipped, it changes nothing
    assert load(tmp_path, EXAMPLE.read_text()) == config.Config()
    for number, line in enumerate(lines):
        if line.startswith("#") and not line.startswith("# ") and " = " in line:
            assert lines[number - 1].startswith("# "), f"{line} has no comment"


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    fd = locks.take(path)
    with pytest.raises(FailedPrecondition, match=rf"another nagayad \(process {os.getpid()}\) works on"):
        locks.take(path)
    os.close(fd)
    os.close(locks.take(path))
    with pytest.raises(KernelError):
        locks.take(str(tmp_path / "none/lock"))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(KernelError):
        locks.take(str(tmp_path / "link"))


def test_the_pid_file_of_another_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    locks.write_pid(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    locks.remove_pid(str(path))
    assert not path.exists()
    locks.remove_pid(str(path))
    path.write_text("1\n")
    locks.remove_pid(str(path))
    assert path.read_text() == "1\n"
