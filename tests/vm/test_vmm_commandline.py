"""nagaya-vmm's command line, and how it begins and ends without a guest. No VM."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
from vmm import Vmm, run


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, "Firecracker v1.16.0\n\nnagaya-vmm "),
        (["--snapshot-version"], 0, "v1.0.0\n"),
        (["--help"], 0, "usage: nagaya-vmm"),
        (["jailer", "--help"], 0, "usage: nagaya-vmm jailer"),
        (["--no-api"], 153, "Argument 'config-file' required, but not found, for argument 'no-api'."),
        (["--no-seccomp", "--seccomp-filter", "x"], 153, "cannot be used together with"),
        (["--unknown"], 153, "unrecognized arguments: --unknown"),
        (["--http-api-max-payload-size", "x"], 153, "'x' is no number of bytes"),
        (["--id", "a_b"], 1, "Invalid instance ID: Invalid char (_) at position 1"),
        (["--id", ""], 1, "Invalid instance ID: Invalid len (0)"),
        (["--level", "loud"], 152, "Invalid value for logger level: loud."),
        (["--log-path", "/nonexistent/log"], 1, "Could not initialize logger: No such file"),
        (["--metrics-path", "/nonexistent/m"], 1, "Could not initialize metrics: "),
        (["--config-file", "/nonexistent"], 1, "Unable to open or read from the configuration file: No such"),
        (["--metadata", "/nonexistent"], 1, "Unable to open or read from the mmds content file: No such"),
        (
            ["--api-sock", "/nonexistent/s"],
            1,
            "the HTTP server: /nonexistent/s: No such file",
        ),
        (["--api-sock", "/tmp/" + "x" * 200], 1, "Failed to bind and run the HTTP server: /tmp/xx"),
        (["--describe-snapshot", "/nonexistent"], 1, "Unable to open snapshot state file: No such file"),
        (["--describe-snapshot", "/dev/null"], 1, "not a snapshot of nagaya-vmm's"),
        (["jailer"], 1, "Jailer error: Arguments parsing error: the following arguments are required: --id"),
    ],
)
def test_words_and_codes(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    if "--api-sock" not in words and words[0] != "jailer":
        words = ["--api-sock", str(tmp_path / "s"), *words]
    done = run(*words)
    assert done.returncode == code
    assert said in (done.stdout if code == 0 else done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()


def test_a_socket_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        done = run("--api-sock", path, "--log-path", str(tmp_path / "log"))
    words = f"Failed to open the API socket at: {path}. Check that it is not already used."
    assert done.returncode == 1 and words in done.stderr and words in (tmp_path / "log").read_text()
    assert os.path.exists(path)  # it is not ours


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "broken").write_text("{")
    done = run("--api-sock", str(tmp_path / "s"), "--metadata", str(tmp_path / "broken"))
    assert done.returncode == 1 and "MMDS error: metadata provided not valid json: EOF" in done.stderr
    (tmp_path / "data").write_text('{"latest": [1]}')
    with Vmm(tmp_path, "--metadata", str(tmp_path / "data"), "--start-time-us", "1") as machine:
        assert machine.get("/mmds") == {"latest": [1]}
        machine.process.send_signal(number)
        assert machine.wait() == 128 + number


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("{}", "Invalid JSON: missing field `drives` at line 1 column 2"),
        ('{"drives": []}', "Invalid JSON: missing field `boot-source` at line 1 column 14"),
        ('{"drives": [{}], "boot-source": 1}', "Invalid JSON: missing field `drive_id`"),
        ('{"drives": [], "boot-source": {"kernel_image_path": "/nonexistent"}}', "The kernel file cannot be"),
    ],
)
def test_configuration_files(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config").write_text(config)
    done = run("--no-api", "--config-file", str(tmp_path / "config"), "--level", "off")
    assert done.returncode == 152 and said in done.stderr and done.stdout == ""


def test_the_order_of_a_configuration_file(tmp_path: Path) -> None:
    """The log is told first, and so has what failed after it."""
    config = {
        "drives": [],
        "boot-source": {"kernel_image_path": "/nonexistent"},
        "logger": {"log_path": str(tmp_path / "log"), "show_level": True, "level": "Error"},
        "cpu-config": {"msr_modifiers": []},
        "something": "else",
    }
    (tmp_path / "config").write_text(json.dumps(config))
    assert run("--no-api", "--config-file", str(tmp_path / "config")).returncode == 152
    assert ":ERROR] Failed to build MicroVM from Json: Boot source error" in (tmp_path / "log").read_text()
