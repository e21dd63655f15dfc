"""The rules of flags, as pflag has them."""

from __future__ import annotations

import pytest

from nagaya.cli.flags import Flag, UsageError, help_text, parse
from nagaya.cli.main import VERBS, _load, main

FLAGS = (
    Flag("all", "", short="a"),
    Flag("env", "", short="e", kind="list"),
    Flag("name", "", short="n", kind="text"),
    Flag("count", "", short="c", kind="int", default=3),
    Flag("proxy", "", default=True),
)


@pytest.mark.parametrize(
    ("argv", "values", "args"),
    [
        ([], {"all": False, "env": [], "name": "", "count": 3, "proxy": True}, []),
        (["-a", "x", "--name", "y", "z"], {"all": True, "name": "y"}, ["x", "z"]),
        (["--all=false", "--proxy=F"], {"all": False, "proxy": False}, []),
        (["-ae", "A=b", "-eC", "-e=D"], {"all": True, "env": ["A=b", "C", "D"]}, []),
        (["-c0x10"], {"count": 16}, []),
        (["-c", "-1"], {"count": -1}, []),
        (["--name=", "-"], {"name": ""}, ["-"]),
        (["--", "-a", "--", "b"], {"all": False}, ["-a", "--", "b"]),
        (["--name", "--all"], {"name": "--all", "all": False}, []),
    ],
)
def test_flags_are_read(argv: list[str], values: dict[str, object], args: list[str]) -> None:
    given = parse(FLAGS, argv)
    assert {key: given[key] for key in values} == values
    assert given.args == args


def test_the_first_argument_ends_the_flags_where_a_command_follows() -> None:
    assert parse(FLAGS, ["-a", "image", "-a", "--frob", "--"], interspersed=False).args == [
        "image", "-a", "--frob", "--",
    ]  # fmt: skip
    assert parse(FLAGS, ["--", "image", "--", "x"], interspersed=False).args == ["image", "--", "x"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--frob"], "unknown flag: --frob"),
        (["-az"], "unknown shorthand flag: 'z' in -az"),
        (["--name"], "flag needs an argument: --name"),
        (["-ae"], "flag needs an argument: 'e' in -ae"),
        (["--all=maybe"], 'invalid argument "maybe" for "-a, --all" flag'),
        (["-c", "x"], 'invalid argument "x" for "-c, --count" flag'),
    ],
)
def test_wrong_flags_are_refused_in_dockers_words(argv: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(FLAGS, argv)
    assert str(caught.value).startswith(says)


def test_lists_are_not_shared_between_calls() -> None:
    parse(FLAGS, ["-e", "A"])["env"].append("B")
    assert parse(FLAGS, [])["env"] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_whole_module(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = _load(verb)
    names = [flag.name for flag in module.FLAGS] + ["help"]
    shorts = [flag.short for flag in module.FLAGS if flag.short]
    assert len(set(names)) == len(names)
    assert len(set(shorts)) == len(shorts)
    assert all(flag.help for flag in module.FLAGS)
    assert main([verb, "--help"]) == 0
    printed = capsys.readouterr().out
    assert module.SUMMARY in printed
    assert all(line in printed for line in help_text(module.FLAGS).splitlines())


@pytest.mark.parametrize(
    ("argv", "status", "says"),
    [
        (["frob"], 1, "nagaya: unknown command: nagaya frob"),
        (["--frob"], 125, "unknown flag: --frob"),
        (["run"], 1, "'nagaya run' requires at least 1 argument"),
        (["run", "--frob"], 125, "unknown flag: --frob"),
        (["rename", "a"], 1, "'nagaya rename' requires 2 arguments"),
        (["ps", "a"], 1, "'nagaya ps' accepts no arguments"),
        (["images", "a", "b"], 1, "requires at most 1 argument"),
        (["image", "frob"], 1, "nagaya: unknown command: nagaya image frob"),
        (["image"], 0, "Usage:  nagaya image COMMAND"),
        (["container", "ls", "--frob"], 125, "Usage:  nagaya container ls [OPTIONS]"),
        (["port"], 1, "'nagaya port' requires at least 1 and at most 2 arguments"),
        (["update", "a"], 1, "you must provide one or more flags when using this command"),
        (
            ["create", "--rm", "--restart", "always", "a"],
            125,
            "Run 'nagaya create --help' for more information",
        ),
        (["-H", "ftp://x", "ps"], 1, "unable to parse docker host `ftp://x`"),
        (["-H", "unix:///nowhere/x", "ps"], 1, "Cannot connect to the daemon at /nowhere/x"),
        (["-H", "unix:///nowhere/x", "run", "a"], 125, "Cannot connect to the daemon"),
        (["-H", "unix:///nowhere/x", "ps", "-f", "x"], 125, "expected KEY=VALUE"),
    ],
)
def test_mistakes_end_with_dockers_exit_codes(
    argv: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == status
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


def test_help_needs_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == main(["help"]) == main(["help", "run"]) == 0
    assert main(["container", "ls", "--help"]) == main(["--version"]) == 0
    assert "Usage:  nagaya container ls" in capsys.readouterr().out
