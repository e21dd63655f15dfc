"""Dockerfiles of all kinds: each becomes instructions, or one line about what is wrong with which line."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from nagaya.build import changes, settings
from nagaya.build.arguments import Arguments, StageArguments, platform_values
from nagaya.build.graph import plan
from nagaya.build.language import parse
from nagaya.build.language.ast import Arg, Cmd, DockerfileError, Run
from nagaya.build.language.commands import program
from nagaya.build.language.expand import expand
from nagaya.errors import InvalidArgument
from nagaya.oci import platform

WORDS = st.sampled_from(
    r"""a b=c "d e" 'f' $v ${v} ${v:-w} ${v##*/} ${v/a/b} ${v \ \\ <<EOF <<-"E" <<< ["a","b"] [1] [ {"a":1} --
    --from=0 --from=s --mount=type=cache,target=/x --mount=type=secret
    --chown=1:2 --interval=5s --platform=linux/arm64
    --exclude=*.o --link --chmod=0644 AS s 80/tcp 1-9 NONE CMD SIGTERM /
    /x . ../y # | && ` \t \x00 \x85 é \ufeff""".split()
)
KEYWORDS = st.sampled_from(
    """FROM RUN CMD LABEL MAINTAINER EXPOSE ENV ADD COPY ENTRYPOINT VOLUME USER WORKDIR ARG ONBUILD STOPSIGNAL
    HEALTHCHECK SHELL from run Copy EOF E # #escape=` #syntax=x NOPE""".split()
)
LINES = st.builds(
    lambda keyword, words, end: f"{keyword} {' '.join(words)}{end}",
    KEYWORDS,
    st.lists(WORDS, max_size=6),
    st.sampled_from(["", "", "", " \\", "`", "\r"]),
)
FILES = st.lists(LINES, max_size=8).map(lambda lines: "\n".join(["FROM a AS s", *lines]).encode())


def build(data: bytes) -> None:
    """All that a build does with a Dockerfile before it touches a file."""
    dockerfile = parse.parse(data)
    here = platform.Platform("linux", "amd64")
    arguments = Arguments({"v": "x/y", "w": None}, platform_values(here, here), dockerfile.escape)
    graph = plan(dockerfile, arguments, "", {"l": "$v"})
    lines = data.count(b"\n") + 1
    for node in graph.nodes:
        stage = StageArguments(arguments)
        config, commanded = settings.with_path({}), False
        for instruction in node.instructions:
            assert 0 <= instruction.line <= instruction.end <= lines
            expanded = expand(instruction, stage.visible(config["Env"]), dockerfile.escape)
            if isinstance(expanded, Arg):
                stage.declare(expanded.args)
            if isinstance(expanded, Run):
                program(expanded.command, config.get("Shell"))
            config = settings.apply(config, expanded, commanded)
            commanded = commanded or isinstance(expanded, Cmd)
            settings.created_by(config, expanded).encode()
        for trigger in config.get("OnBuild") or ():
            parse.parse_trigger(trigger)
    arguments.unused()


def one_line(error: InvalidArgument, data: bytes) -> None:
    assert error.message and "\n" not in error.message and len(error.message) < 1000
    if isinstance(error, DockerfileError):
        assert 0 <= error.line <= data.count(b"\n") + 1


@given(FILES)
@limits(max_examples=400, deadline=None)
@example(b"FROM a\nRUN <<EOF\nEOF")
@example(b"FROM a\nHEALTHCHECK \xe2\x80\xa8CMD x")
def test_a_file_of_instructions(data: bytes) -> None:
    try:
        build(data)
    except InvalidArgument as error:
        one_line(error, data)


@given(st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")))
@limits(max_examples=300, deadline=None)
def test_any_bytes(data: bytes) -> None:
    for text in (data, b"FROM a\n" + data):
        try:
            build(text)
        except InvalidArgument as error:
            one_line(error, text)


@given(st.lists(LINES, max_size=4))
@limits(max_examples=200, deadline=None)
def test_changes_of_a_commit(lines: list[str]) -> None:
    try:
        changes.apply({"Env": ["v=1"]}, lines)
    except InvalidArgument as error:
        one_line(error, "\n".join(lines).encode())
