"""What instructions make of a configuration, and how the history tells it."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.build import settings
from nagaya.build.language.ast import Cmd, CommandLine, DockerfileError, Heredoc, Instruction, Run
from nagaya.build.language.commands import Program, program
from nagaya.build.language.expand import expand
from nagaya.build.language.parse import parse


def instructions(text: str) -> list[Instruction]:
    stage = parse(f"FROM a\n{text}\n".encode()).stages[0]
    return [expand(instruction, {}) for instruction in stage.instructions]


def made(text: str, config: dict[str, Any] | None = None) -> dict[str, Any]:
    found, commanded = dict(config or {}), False
    for instruction in instructions(text):
        found = settings.apply(found, instruction, commanded)
        commanded = commanded or isinstance(instruction, Cmd)
    return found


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("ENV a=1 b=2\nENV a=3", "Env", ["x=0", "a=3", "b=2"]),
        ("LABEL a=1\nLABEL b=2 a=3", "Labels", {"a": "3", "b": "2"}),
        ("EXPOSE 53/UDP 8080:90-91", "ExposedPorts", {"53/udp": {}, "90/tcp": {}, "91/tcp": {}}),
        ("USER a:b", "User", "a:b"),
        ("WORKDIR a\nWORKDIR b/..//c/", "WorkingDir", "/a/c"),
        ("WORKDIR a\nWORKDIR //b", "WorkingDir", "/b"),
        ('VOLUME /a /b\nVOLUME ["/c d"]', "Volumes", {"/a": {}, "/b": {}, "/c d": {}}),
        ("CMD a b", "Cmd", ["/bin/sh", "-c", "a b"]),
        ('CMD ["a", "b"]', "Cmd", ["a", "b"]),
        ('SHELL ["x", "-y"]\nCMD a b', "Cmd", ["x", "-y", "a b"]),
        ("ENTRYPOINT []", "Entrypoint", None),
        ("ENTRYPOINT", "Entrypoint", None),
        ("CMD", "Cmd", ["/bin/sh", "-c"]),
        ("CMD a\nENTRYPOINT b", "Cmd", ["/bin/sh", "-c", "a"]),
        ("ENTRYPOINT b", "Cmd", None),
        ("STOPSIGNAL SIGQUIT", "StopSignal", "SIGQUIT"),
        ("HEALTHCHECK --interval=5s --start-interval=2s --retries=3 CMD x", "Healthcheck",
         {"Test": ["CMD-SHELL", "x"], "Interval": 5 * 10**9, "StartInterval": 2 * 10**9, "Retries": 3}),
        ("HEALTHCHECK NONE", "Healthcheck", {"Test": ["NONE"]}),
        ("ONBUILD RUN a\nONBUILD CMD b", "OnBuild", ["RUN a", "CMD b"]),
        ("RUN a\nCOPY a b", "Cmd", ["c"]),
    ],
)  # fmt: skip
def test_what_becomes_of_a_configuration(text: str, key: str, value: object) -> None:
    base = {"Env": ["x=0"], "Cmd": ["c"]}
    assert made(text, base)[key] == value
    assert base == {"Env": ["x=0"], "Cmd": ["c"]}  # nothing is changed in place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EXPOSE x", "Invalid containerPort: x"),
        ("EXPOSE 80/tls", "Invalid proto: tls"),
        ("EXPOSE 9-8", "Invalid containerPort: 9-8"),
        ("EXPOSE 70000", "Invalid containerPort: 70000"),
        ("EXPOSE /tcp", "No port specified: /tcp<empty>"),
        ("STOPSIGNAL SIGNONE", "invalid signal: SIGNONE"),
        ("STOPSIGNAL RTMIN+²", "invalid signal: RTMIN+²"),
        ("WORKDIR $none", "cannot normalize nothing"),
        ("VOLUME $none", "VOLUME specified can not be an empty string"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        made(text)
    assert (caught.value.message, caught.value.line) == (message, 2)


def test_a_stage_begins_with_a_path_and_without_triggers() -> None:
    assert settings.with_path({"OnBuild": ["RUN x"], "User": "u"}) == {
        "User": "u",
        "Env": [f"PATH={settings.PATH}"],
    }
    assert settings.with_path({"Env": ["PATH=/x", "a=b"]}) == {"Env": ["PATH=/x", "a=b"]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('ENV a="b c" d=e', "/bin/sh -c #(nop)  ENV a=b c d=e"),
        ("CMD a \"b\"", '/bin/sh -c #(nop)  CMD ["/bin/sh" "-c" "a \\"b\\""]'),
        ('ENTRYPOINT ["a\\tb"]', '/bin/sh -c #(nop)  ENTRYPOINT ["a\\tb"]'),
        ("WORKDIR a", "/bin/sh -c #(nop) WORKDIR /a"),
        ("ARG a=b", "/bin/sh -c #(nop)  ARG a=b"),
        ("ARG a", "/bin/sh -c #(nop)  ARG a"),
        ("EXPOSE 80 81/udp", "/bin/sh -c #(nop)  EXPOSE 80 81/udp"),
        ("VOLUME /a /b", "/bin/sh -c #(nop)  VOLUME [/a /b]"),
        ("STOPSIGNAL 9", "/bin/sh -c #(nop)  STOPSIGNAL 9"),
        ("ONBUILD RUN x", "/bin/sh -c #(nop)  ONBUILD RUN x"),
        ("MAINTAINER m", "/bin/sh -c #(nop)  MAINTAINER m"),
        ('SHELL ["x", "-y"]', "x -y #(nop)  SHELL [x -y]"),
        ("HEALTHCHECK --interval=90s --timeout=1h --retries=3 CMD x",
         '/bin/sh -c #(nop)  HEALTHCHECK &{["CMD-SHELL" "x"] "1m30s" "1h0m0s" "0s" \'\\x03\'}'),
        ("USER u", "/bin/sh -c #(nop)  USER u"),
        ("LABEL a=b", "/bin/sh -c #(nop)  LABEL a=b"),
    ],
)  # fmt: skip
def test_how_the_history_tells_it(text: str, told: str) -> None:
    (instruction,) = instructions(text)
    assert settings.created_by(settings.apply({}, instruction), instruction) == told


@pytest.mark.parametrize(
    ("retries", "told"),
    [
        (0, "\\x00"),
        (12, "\\f"),
        (34, '"'),
        (39, "\\'"),
        (65, "A"),
        (127, "\\x7f"),
        (233, "é"),
        (1 << 30, "\ufffd"),
    ],
)
def test_retries_are_a_character_there(retries: int, told: str) -> None:
    assert settings._rune(retries) == f"'{told}'"


def test_a_go_string() -> None:
    assert settings.quoted('ü"\x01\u200b\n') == '"ü\\"\\x01\\u200b\\n"'


# what RUN runs


def ran(text: str, shell: list[str] | None = None) -> Program:
    (run,) = instructions(text)
    assert isinstance(run, Run)
    return program(run.command, shell)


def test_words_or_a_shell_s_line() -> None:
    assert ran('RUN ["a", "b c"]').words == ("a", "b c")
    assert ran("RUN a  b").words == ("/bin/sh", "-c", "a  b")
    assert ran("RUN a", ["x"]).words == ("x", "a")


def test_documents_of_run() -> None:
    assert ran("RUN <<E\na\nb\nE").words == ("/bin/sh", "-c", "a\nb\n")
    assert ran("RUN <<-E\n\ta\n\tE").words == ("/bin/sh", "-c", "a\n")
    assert ran("RUN cat <<E >x && y <<F\na\nE\nb\nF").words[2] == "cat <<E >x && y <<F\na\nE\nb\nF"
    script = ran("RUN <<E\n#!/bin/awk -f\nx\nE")
    assert script == Program(("/bin/sh", "-c", "/dev/pipes/E"), "/dev/pipes/E", "#!/bin/awk -f\nx\n")


def test_a_mark_is_no_path() -> None:
    command = CommandLine(("<<../../x",), True, (Heredoc("../../x", "#!/x\n"),))
    assert program(command).path == "/dev/pipes/script"
