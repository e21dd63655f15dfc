"""Completion, as a shell asks for it; with bash itself where the words are a person's."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, python_main

from nagaya.cli.completing import SCRIPTS
from nagaya.cli.main import NOUNS, VERBS

IMAGE = "nagaya/busybox"
NAGAYA = python_main("nagaya.cli.main")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House() as started:
        started.ok("run", "-d", "--name", "web", "--network", "none", IMAGE, "sleep", "600")
        started.ok("create", "--name", "idle", IMAGE, "true")
        started.ok("volume", "create", "data")
        yield started


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """`nagaya` as an executable of that name."""
    found = tmp_path / "nagaya"
    start = f"import os, sys\nos.execv({NAGAYA[0]!r}, {NAGAYA!r} + sys.argv[1:])\n"
    found.write_text(f"#!{NAGAYA[0]}\n{start}")
    found.chmod(0o755)
    return found


def typed(keyboard: int, keys: str, until: str) -> str:
    """Press keys on a terminal; what it shows, up to some text."""
    os.write(keyboard, keys.encode())
    seen = ""
    deadline = time.monotonic() + 30
    while until not in seen:
        left = deadline - time.monotonic()
        assert left > 0 and select.select([keyboard], [], [], left)[0], f"no {until!r} in {seen!r}"
        seen += os.read(keyboard, 65536).decode(errors="replace")
    return seen


def offered(house: House, *words: str) -> list[str]:
    done = house.nagaya("__complete", *words)
    assert done.returncode == 0 and done.stderr == b"", done
    return [line.partition("\t")[0] for line in done.stdout.decode().splitlines()]


@pytest.mark.root
class TestNames:
    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("stop ", ["web"]),
            ("start ", ["idle"]),
            ("rm ", ["idle", "web"]),
            ("rm web ", ["idle"]),
            ("rm -f w", ["web"]),
            ("exec ", ["web"]),
            ("exec web ", []),
            ("run ", [IMAGE]),
            ("run --rm -e A=b -v x:/y nag", [IMAGE]),
            (f"run {IMAGE} ", []),
            ("run --network ", ["bridge", "host", "none"]),
            ("volume rm ", ["data"]),
            ("volume inspect ", ["data"]),
            ("container inspect ", ["idle", "web"]),
            ("network connect bridge ", ["idle", "web"]),
            ("inspect d", ["data"]),
            ("stop nosuch", []),
            ("build --progress ", ["auto", "plain", "quiet", "tty"]),
            ("build --cache-from nag", [IMAGE]),
            ("builder p", ["prune"]),
            ("nosuch ", []),
        ],
    )
    def test_of_objects(self, house: House, line: str, expected: list[str]) -> None:
        assert sorted(offered(house, *line.split(" "))) == expected

    @pytest.mark.skipif(not shutil.which("fish"), reason="no fish here")
    def test_in_fish(self, house: House, program: Path) -> None:
        script = (
            f"set -x PATH {program.parent} $PATH; nagaya completion fish | source; "
            "complete -C 'nagaya stop w'; echo; complete -C 'nagaya volume '; echo; "
            f"complete -C 'nagaya load -i {program.parent}/nag'"
        )
        done = subprocess.run(
            ["fish", "--no-config", "-c", script], capture_output=True, text=True, env=house.environment
        )
        assert done.returncode == 0, done
        containers, verbs, files = done.stdout.split("\n\n")
        assert containers.partition("\t")[0] == "web" and "Up" in containers
        assert {line.partition("\t")[0] for line in verbs.splitlines()} == set(NOUNS["volume"])
        assert str(program) in files

    @pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")
    def test_in_zsh(self, house: House, program: Path) -> None:
        keyboard, screen = os.openpty()
        environment = {**house.environment, "TERM": "dumb", "PATH": f"{program.parent}:{os.environ['PATH']}"}
        shell = subprocess.Popen(
            ["zsh", "-f", "-i"], stdin=screen, stdout=screen, stderr=screen, env=environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(screen)
        try:
            begin = 'PS1=; autoload -U compinit; compinit -u -D; eval "$(nagaya completion zsh)"'
            typed(keyboard, f'{begin}; print rea""dy\n', "ready\r\n")
            # the line as it is completed is shown, not run: from its start on it becomes echo's arguments
            line = typed(keyboard, "nagaya stop w\t\x01print sa''id \n", "said nagaya")
            assert "said nagaya stop web" in line
            offered = typed(keyboard, "nagaya volume \t", "Remove")
            assert all(verb in offered for verb in NOUNS["volume"])
        finally:
            shell.kill()
            shell.wait()
            os.close(keyboard)

    @pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
    def test_in_bash(self, house: House, program: Path) -> None:
        script = (
            f'PATH={program.parent}:$PATH; eval "$(nagaya completion bash)"; '
            "complete -p nagaya >/dev/null || exit 1; COMP_WORDS=(nagaya stop w); COMP_CWORD=2; _nagaya; "
            'echo "${COMPREPLY[@]}"; COMP_WORDS=(nagaya volume ""); _nagaya; echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=house.environment)
        assert done.returncode == 0, done
        assert done.stdout.splitlines()[0] == "web"
        assert set(done.stdout.splitlines()[1].split()) == set(NOUNS["volume"])


def alone(*words: str) -> list[str]:
    """Without any daemon, which is not started either."""
    done = subprocess.run(
        [*NAGAYA, "-H", "unix:///nosuch", *words],
        capture_output=True,
        text=True,
        env={},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("", {*VERBS, *NOUNS}),
        ("vo", {"volume"}),
        ("--h", {"--host", "--help"}),
        ("volume ", set(NOUNS["volume"])),
        ("run --restart ", {"always", "no", "on-failure", "unless-stopped"}),
        ("run --rest", {"--restart"}),
        ("volume create --", {"--driver", "--help", "--label", "--name", "--opt"}),
        ("completion ", {"bash", "zsh", "fish"}),
        ("stop ", set()),
        ("ps --format ", {"json", "table"}),
    ],
)
def test_without_a_daemon(line: str, some: set[str]) -> None:
    assert set(alone("__complete", *line.split(" "))) == some


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts(shell: str) -> None:
    done = subprocess.run([*NAGAYA, "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0 and "__complete" in done.stdout
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=done.stdout, text=True).returncode == 0


def test_another_shell() -> None:
    done = subprocess.run([*NAGAYA, "completion", "csh"], capture_output=True, text=True)
    assert done.returncode == 1 and "use one of bash, zsh, fish" in done.stderr
