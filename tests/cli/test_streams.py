"""A person at a container: terminals, detaching, several clients, signals, logs, exec."""

from __future__ import annotations

import re
import signal
import termios
import time
from pathlib import Path

import pytest
from clients import Cli, Terminal
from house import wait_for

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
DETACH = b"\x10\x11"


def test_a_terminal_of_the_right_size_that_follows_the_window(cli: Cli) -> None:
    with cli.terminal("run", "--rm", "-it", "--name", "tty", IMAGE, "sh", rows=33, columns=99) as person:
        person.expect(b"# ")
        for _ in range(50):  # docker's client tells the size after the start
            person.send(b"stty size\r")
            if b"33 99" in person.expect(b"# "):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the size did not arrive")
        for columns in range(120, 170):  # nor does it see a change while it tells the first one
            person.resize(40, columns)
            person.send(b"stty size\r")
            if b"40 1" in person.expect(b"# "):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the new size did not arrive")
        person.send(b"tty; test -t 0 && echo yes; echo $TERM\r")
        assert b"/dev/pts/0\r\nyes\r\nxterm\r\n" in person.expect(b"xterm\r\n")
        person.send(b"exit 5\r")
        assert person.wait() == 5


def test_the_terminal_is_raw_and_put_back(cli: Cli) -> None:
    with cli.terminal("run", "--rm", "-it", "--name", "box", IMAGE, "sh") as person:
        person.expect(b"# ")
        assert not person.modes()[3] & termios.ICANON  # type: ignore[operator]
        # ctrl-c is the container's: the shell lives on
        person.send(b"sleep 60\r")
        wait_for(lambda: "sleep 60" in cli("top", "box").out, 20, "the sleep")
        person.send(b"\x03")
        person.expect(b"# ")
        person.send(b"echo a\x04\x04")  # a line without an end, then its end
        person.expect(b"a")
        person.send(b"\r")
        person.expect(b"# ")
        person.send(b"exit\r")
        assert person.wait() == 0
        assert person.last_modes == person.first_modes


def test_detach_and_attach_again(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--name", "box", IMAGE, "sh") as person:
        person.expect(b"# ")
        person.send(b"A=kept\r")
        person.expect(b"# ")
        person.send(DETACH)
        assert person.wait() == 0
    assert cli.ok("inspect", "-f", "{{.State.Running}}", "box") == "true"
    with cli.terminal("attach", "box") as person:
        person.send(b"echo $A again\r")
        person.expect(b"kept again\r\n")
        person.send(b"exit 3\r")
        assert person.wait() == 3
    assert cli.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box") == "exited 3"


def test_other_detach_keys(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--detach-keys", "ctrl-a,x", "--name", "box", IMAGE, "cat") as person:
        person.send(b"\x10\x11 go through\r")
        person.expect(b" go through\r\n")
        person.send(b"\x01x")
        assert person.wait() == 0
    assert cli.ok("ps", "--format", "{{.Names}}") == "box"


def test_detach_keys_of_the_configuration(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"detachKeys": "ctrl-a,x"}')
    words = ["env", f"DOCKER_CONFIG={tmp_path}"]
    run = cli.argv("run", "-it", "--name", "box", IMAGE, "cat")
    environment = {**cli.server.environment, "TERM": "xterm"}
    with Terminal([*words, *run], environment, 24, 80) as person:
        person.send(b"\x10\x11 go through\r")
        person.expect(b" go through\r\n")
        person.send(b"\x01x")
        assert person.wait() == 0
    with Terminal([*words, *cli.argv("exec", "-it", "box", "cat")], environment, 24, 80) as person:
        person.send(b"\x10\x11 too\r")
        person.expect(b" too\r\n")
        person.send(b"\x01x")
        assert person.wait() == 1
        assert person.seen.endswith(b"read escape sequence\r\n")
    assert cli.ok("ps", "--format", "{{.Names}}") == "box"


def test_two_clients_see_the_same(cli: Cli) -> None:
    with cli.terminal("run", "-it", "--name", "box", IMAGE, "sh") as one:
        one.expect(b"# ")
        with cli.terminal("attach", "box") as two:
            wait_for(lambda: _types(two, b"echo fr'om two'\r", b"from two\r\n"), 30, "the second client")
            one.expect(b"from two\r\n")
            one.send(b"echo fr'om one'\r")
            two.expect(b"from one\r\n")
            two.send(DETACH)
            assert two.wait() in (0, 1)  # as the client's version has it
            assert b"read escape sequence" in two.seen
        one.send(b"exit\r")
        assert one.wait() == 0


def _types(person: object, line: bytes, answer: bytes) -> bool:
    from clients import Terminal

    assert isinstance(person, Terminal)
    person.send(line)
    person.expect(answer)
    return True


def test_no_terminal_for_a_terminal(cli: Cli) -> None:
    said = cli("run", "--rm", "-it", IMAGE, "sh")
    assert said.status == 1 and said.out == ""
    assert "not a" in said.err.lower() and "t" in said.err
    assert cli.ok("ps", "-aq") == ""
    # without stdin it is allowed: lines end as on a terminal
    assert cli("run", "--rm", "-t", IMAGE, "echo", "hi") == (0, "hi\r\n", "")


def test_signals_are_passed_on(cli: Cli) -> None:
    script = "trap 'echo got INT; exit 4' INT; echo ready; while :; do sleep 0.1; done"
    with cli.background("run", "--rm", "--name", "box", IMAGE, "sh", "-c", script) as run:
        assert run.line() == "ready"
        run.signal(signal.SIGINT)
        assert run.end() == (4, "got INT\n", "")


def test_without_the_proxy_only_the_client_dies(cli: Cli) -> None:
    script = "echo ready; while :; do sleep 0.1; done"
    with cli.background("run", "--sig-proxy=false", "--name", "box", IMAGE, "sh", "-c", script) as run:
        assert run.line() == "ready"
        run.signal(signal.SIGTERM)
        time.sleep(0.5)
        if run.process.poll() is None:
            run.signal(signal.SIGKILL)  # docker 28 waits for a third signal
        assert run.end().status != 0
    assert cli.ok("ps", "--format", "{{.Names}}") == "box"


def test_start_attached_and_with_stdin(cli: Cli) -> None:
    cli.ok("create", "-i", "--name", "box", IMAGE, "sh", "-c", 'read a; echo "<$a>"; exit 6')
    assert cli("start", "-a", "-i", "box", input="first\n") == (6, "<first>\n", "")
    assert cli("start", "-ai", "box", input="second\n") == (6, "<second>\n", "")
    assert cli.ok("logs", "box") == "<first>\n<second>"
    cli.ok("create", "--name", "plain", IMAGE, "sh", "-c", "echo x; exit 2")
    assert cli("start", "-a", "plain") == (2, "x\n", "")
    assert cli("start", "plain") == (0, "plain\n", "")


def test_attach_to_what_has_no_terminal(cli: Cli) -> None:
    script = 'while read line; do echo "out $line"; echo "err $line" >&2; done; exit 9'
    cli.ok("run", "-d", "-i", "--name", "box", IMAGE, "sh", "-c", script)
    with cli.background("attach", "--no-stdin", "box") as watcher, cli.background("attach", "box") as writer:
        time.sleep(0.5)  # nothing says when an attachment has begun
        writer.send(b"1\n2\n")
        assert [writer.line(), writer.line()] == ["out 1", "out 2"]
        assert [watcher.line(), watcher.line()] == ["out 1", "out 2"]
        cli.ok("stop", "-t", "0", "box")
        assert writer.end() == (137, "", "err 1\nerr 2\n")
        assert watcher.end() == (137, "", "err 1\nerr 2\n")
    said = cli("attach", "box")
    assert said.status == 1 and "annot attach to a stopped container, start it first" in said.err


def test_logs(cli: Cli) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; sleep 0.02; done; printf 'no end'"
    cli.ok("run", "--name", "box", IMAGE, "sh", "-c", script)
    out = "".join(f"out {n}\n" for n in range(1, 6))
    err = "".join(f"err {n}\n" for n in range(1, 6))
    assert cli("logs", "box") == (0, out + "no end", err)
    said = cli("logs", "--tail", "3", "box")
    # two pipes: on a busy machine more of one is read before the other
    assert said.out.endswith("no end") and (out + "no end").endswith(said.out) and err.endswith(said.err)
    assert len(f"{said.out}\n{said.err}".splitlines()) == 3
    assert cli("logs", "-n", "0", "box") == (0, "", "")
    assert cli("logs", "--tail=all", "-f", "box") == (0, out + "no end", err)
    stamped = cli("logs", "-t", "box").out.splitlines()
    assert all(
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (out \d|no end)", line) for line in stamped
    )
    third = stamped[2].split()[0]
    assert cli("logs", "--since", third, "box").out == "out 3\nout 4\nout 5\nno end"
    before = cli("logs", "--until", third, "box").out
    assert before.startswith("out 1\nout 2\n") and "out 4" not in before
    assert cli("logs", "--since", "1h", "box").out == out + "no end"
    assert cli("logs", "--until", "1h", "box") == (0, "", "")
    assert cli("logs", "--since", "2999-01-01", "box") == (0, "", "")


def test_logs_follow_until_the_end(cli: Cli) -> None:
    script = "echo first; while [ ! -e /go ]; do sleep 0.05; done; echo last >&2"
    cli.ok("run", "-d", "--name", "box", IMAGE, "sh", "-c", script)
    with cli.background("logs", "-f", "box") as follow:
        assert follow.line() == "first"
        cli.ok("exec", "box", "touch", "/go")
        assert follow.end() == (0, "", "last\n")


def test_logs_of_a_terminal_and_of_no_driver(cli: Cli) -> None:
    cli("run", "-t", "--name", "tty", IMAGE, "sh", "-c", "echo a; echo b >&2")
    assert cli("logs", "tty") == (0, "a\r\nb\r\n", "")
    cli.ok("run", "--log-driver", "none", "--name", "none", IMAGE, "echo", "x")
    said = cli("logs", "none")
    assert said.status == 1
    assert (
        said.err.rstrip() == "Error response from daemon: configured logging driver does not support reading"
    )


def test_exec(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", "-e", "BASE=1", "-w", "/etc", "-u", "1000", IMAGE, "sleep", "600")
    script = "echo $A $BASE; pwd; id -u; echo err >&2; exit 11"
    said = cli("exec", "-e", "A=x y", "-w", "/tmp", "-u", "nobody", "box", "sh", "-c", script)
    assert said == (11, "x y 1\n/tmp\n65534\n", "err\n")
    assert cli.ok("exec", "box", "sh", "-c", "pwd; id -u") == "/etc\n1000"
    text = "some text\n" * 5000
    assert cli("exec", "-i", "box", "cat", input=text) == (0, text, "")
    assert cli("exec", "box", "cat", input="not passed on") == (0, "", "")
    missing = cli("exec", "box", "nosuchprogram")
    assert missing.status in (126, 127) and "executable file not found in $PATH" in missing.out + missing.err
    denied = cli("exec", "box", "/etc/passwd")
    assert denied.status == 126 and "permission denied" in denied.out + denied.err
    assert cli("exec", "-d", "-u", "0", "box", "sh", "-c", "echo done > /tmp/mark") == (0, "", "")
    wait_for(lambda: cli("exec", "box", "cat", "/tmp/mark").out == "done\n", 20, "the detached command")
    assert "CapEff:\t0000000000000000" in cli.ok("exec", "box", "grep", "CapEff", "/proc/self/status")


def test_exec_with_a_terminal(cli: Cli) -> None:
    cli.ok("run", "-d", "--name", "box", IMAGE, "sleep", "600")
    with cli.terminal("exec", "-it", "box", "sh", rows=31, columns=91) as person:
        person.expect(b"# ")
        for _ in range(50):
            person.send(b"stty size\r")
            if b"31 91" in person.expect(b"# "):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the size did not arrive")
        person.send(b"exit 12\r")
        assert person.wait() == 12
    with cli.terminal("exec", "-it", "box", "sh") as person:
        person.expect(b"# ")
        person.send(DETACH)
        assert person.wait() in (0, 1)
    assert cli.ok("inspect", "-f", "{{.State.Running}}", "box") == "true"


def test_exec_where_it_cannot(cli: Cli) -> None:
    cli.ok("create", "--name", "box", IMAGE)
    said = cli("exec", "box", "true")
    assert said.status == 1
    assert re.fullmatch(
        r"Error response from daemon: [Cc]ontainer [0-9a-f]{64} is not running", said.err.rstrip()
    )
    said = cli("exec", "nosuch", "true")
    assert said.status == 1
    assert said.err.rstrip().endswith("No such container: nosuch")


def test_a_client_that_goes_away_leaves_the_container(cli: Cli) -> None:
    with cli.background(
        "run", "--name", "box", IMAGE, "sh", "-c", "echo hi; sleep 1; echo more; sleep 600"
    ) as run:
        assert run.line() == "hi"
        run.signal(signal.SIGKILL)
        run.end()
    wait_for(lambda: cli("logs", "box").out == "hi\nmore\n", 20, "more output")
    assert cli.ok("ps", "--format", "{{.Names}}") == "box"
