"""Dockerfiles as moby/buildkit's frontend reads them: lines, words, instructions, messages."""

from __future__ import annotations

import pytest

from nagaya.build.language.ast import (
    Add,
    Cmd,
    Copy,
    DockerfileError,
    Env,
    Expose,
    Healthcheck,
    Heredoc,
    Instruction,
    Label,
    Mount,
    Onbuild,
    Pair,
    Run,
    Shell,
    Volume,
)
from nagaya.build.language.expand import expand
from nagaya.build.language.parse import parse, parse_trigger


def instruction(text: str) -> Instruction:
    return parse(f"FROM scratch\n{text}\n".encode()).stages[0].instructions[0]


def complaint(text: str) -> str:
    with pytest.raises(DockerfileError) as caught:
        parse(text.encode())
    return caught.value.message


# lines


def test_an_instruction_knows_its_lines_and_its_text() -> None:
    stage = parse(b"\n# c\nFROM a\n\nRUN one \\\n  # not this\n  two \\\n\n  three\nCMD x\n").stages[0]
    run, cmd = stage.instructions
    assert (run.line, run.end, run.text) == (5, 9, "RUN one   two   three")
    assert (cmd.line, cmd.end) == (10, 10)
    assert (stage.begin.line, stage.begin.base) == (3, "a")


def test_a_file_s_last_line_needs_no_end_and_may_hang() -> None:
    assert instruction("RUN a \\").text == "RUN a"
    assert parse(b"\xef\xbb\xbfFROM a\r\nRUN b\\\r\n c\r\n").stages[0].instructions[0].text == "RUN b c"


def test_directives_come_first() -> None:
    found = parse(
        b"# syntax=docker/dockerfile:1\n#escape=`\n# check=skip=all\nFROM a\nRUN b `\n c\nRUN d \\\n"
    )
    assert (found.syntax, found.escape, found.check) == ("docker/dockerfile:1", "`", "skip=all")
    assert [i.text for i in found.stages[0].instructions] == ["RUN b  c", "RUN d \\"]
    assert parse(b"# a comment\n# escape=`\nFROM a").escape == "\\"
    assert parse(b"# unknown=1\n# escape=`\nFROM a").escape == "\\"
    assert (
        complaint("# escape=x\nFROM a")
        == "failed to parse Dockerfile: invalid escape token 'x' does not match ` or \\"
    )
    twice = complaint("# escape=`\n# escape=`\nFROM a")
    assert twice == "failed to parse Dockerfile: only one escape parser directive can be used"


def test_an_escaped_escape_does_not_continue_a_line() -> None:
    assert [i.text for i in parse(b"FROM a\nRUN b\\\\\nRUN c").stages[0].instructions] == [
        "RUN b\\\\",
        "RUN c",
    ]


def test_empty_lines_in_a_continuation_are_warned_of() -> None:
    warnings = parse(b"FROM a\nRUN b \\\n\n c\n").warnings
    assert [(w.rule, w.message) for w in warnings] == [
        ("NoEmptyContinuation", "Empty continuation line found in: RUN b  c")
    ]


@pytest.mark.parametrize("text", ["", "\n", "# only\n", " \\\n"])
def test_nothing_is_no_dockerfile(text: str) -> None:
    assert complaint(text) == "failed to parse Dockerfile: file with no instructions"


def test_a_line_has_a_bound() -> None:
    assert "dockerfile line greater than max allowed size" in complaint("FROM a\nRUN " + "x" * 70000)


# documents


def test_documents_of_run_and_copy() -> None:
    run = instruction("RUN <<EOF\necho $a\n# no comment\n\nEOF")
    assert isinstance(run, Run)
    assert run.command.heredocs == (Heredoc("EOF", "echo $a\n# no comment\n\n"),)
    copy = instruction("COPY <<-'a' <<b c /d/\n\tone\n\ta\ntwo\nb")
    assert isinstance(copy, Copy)
    assert copy.sources == ("c",)
    assert [(h.name, h.text, h.expand, h.chomp) for h in copy.inline] == [
        ("a", "one\n", False, True),
        ("b", "two\n", True, False),
    ]


def test_what_only_looks_like_a_document() -> None:
    assert instruction('RUN echo "<<EOF"').text == 'RUN echo "<<EOF"'
    assert instruction("RUN cat <<< x").text == "RUN cat <<< x"
    assert instruction("CMD <<EOF").text == "CMD <<EOF"
    copy = instruction('COPY ["<<EOF", "/x"]')
    assert isinstance(copy, Copy) and (copy.sources, copy.inline) == (("<<EOF",), ())


def test_a_document_must_end() -> None:
    assert complaint("FROM a\nRUN <<EOF\nx\n") == "failed to parse Dockerfile: unterminated heredoc"
    assert "cannot accept a heredoc as a destination" in complaint("FROM a\nCOPY a <<EOF\nx\nEOF\n")


# instructions


def test_flags_keep_neither_quotes_nor_escapes() -> None:
    copy = instruction('COPY --chown="1 : 2" --from=b\\ c --link --exclude=*.o --exclude=x --parents -- a /b')
    assert isinstance(copy, Copy)
    assert (copy.chown, copy.origin, copy.link, copy.parents) == ("1 : 2", "b c", True, True)
    assert (copy.exclude, copy.sources, copy.destination) == (("*.o", "x"), ("a",), "/b")


def test_add_s_own_flags() -> None:
    add = instruction("ADD --checksum=sha256:ab --unpack=false --chmod=0640 u /x")
    assert isinstance(add, Add)
    assert (add.checksum, add.unpack, add.chmod) == ("sha256:ab", False, "0640")


def test_json_or_words() -> None:
    cmd, shell_form, not_json = (instruction(f"CMD {w}") for w in ('["a", "b c"]', 'a "b"', "['a']"))
    assert isinstance(cmd, Cmd) and isinstance(shell_form, Cmd) and isinstance(not_json, Cmd)
    assert (cmd.command.words, cmd.command.shell) == (("a", "b c"), False)
    assert (shell_form.command.words, shell_form.command.shell) == (('a "b"',), True)
    assert (not_json.command.words, not_json.command.shell) == (("['a']",), True)


def test_pairs_new_and_old() -> None:
    env = instruction('ENV a=1 b="x y" c=d\\ e')
    assert isinstance(env, Env)
    assert env.pairs == (Pair("a", "1"), Pair("b", '"x y"'), Pair("c", "d\\ e"))
    old = instruction("LABEL a  b = c")
    assert isinstance(old, Label)
    assert old.pairs == (Pair("a", "b = c", old=True),)


def test_a_health_check() -> None:
    check = instruction("HEALTHCHECK --interval=1m30s --timeout=1.5s --retries=4 CMD a | b")
    assert isinstance(check, Healthcheck)
    assert (check.test, check.interval, check.timeout, check.retries) == (
        ("CMD-SHELL", "a | b"), 90 * 10**9, 1500 * 10**6, 4,
    )  # fmt: skip
    none = instruction("HEALTHCHECK none")
    assert isinstance(none, Healthcheck) and none.test == ("NONE",)


def test_the_small_ones() -> None:
    expose, volume, shell = (
        instruction("EXPOSE 90 80/udp"),
        instruction('VOLUME ["/a b"]'),
        instruction('SHELL ["x"]'),
    )
    assert isinstance(expose, Expose) and expose.ports == ("80/udp", "90")
    assert isinstance(volume, Volume) and volume.paths == ("/a b",)
    assert isinstance(shell, Shell) and shell.words == ("x",)


def test_a_trigger_is_an_instruction_of_another_day() -> None:
    onbuild = instruction("ONBUILD  RUN <<E\nx\nE")
    assert isinstance(onbuild, Onbuild) and onbuild.expression == "RUN <<E\nx\nE"
    trigger = parse_trigger(onbuild.expression)
    assert isinstance(trigger, Run) and trigger.command.heredocs[0].content == "x\n"
    with pytest.raises(DockerfileError, match="single expression"):
        parse_trigger("RUN a\nRUN b")


def test_stages() -> None:
    found = parse(b"ARG v=1\nARG w\nFROM --platform=linux/arm64 a:$v AS One\nRUN x\nFROM one\n")
    assert [[str(a) for a in arg.args] for arg in found.args] == [["v=1"], ["w="]]
    first, second = found.stages
    assert (first.begin.base, first.begin.name, first.begin.platform) == ("a:$v", "one", "linux/arm64")
    assert (second.begin.base, second.begin.name, second.instructions) == ("one", "", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FOO x", "unknown instruction: FOO"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("ENV x", "ENV must have two arguments"),
        ("ENV x=1 y", 'Syntax error - can\'t find = in "y". Must be of the form: name=value'),
        ("ENV =1", "ENV names can not be blank"),
        ("COPY --nope a b", "unknown flag: --nope"),
        ("COPY --link=maybe a b", "expecting boolean value for flag --link, not: maybe"),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --from=a --from=b a b", "duplicate flag specified: --from"),
        ("ADD --keep-git-dir a b", "ADD --keep-git-dir is not supported: git repositories cannot be added"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("SHELL sh -c", "SHELL requires the arguments to be in JSON form"),
        ("CMD [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ('VOLUME [" "]', "VOLUME specified can not be an empty string"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD FROM b", "FROM isn't allowed as an ONBUILD trigger"),
        ("HEALTHCHECK x", 'Unknown type "X" in HEALTHCHECK (try CMD)'),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK --interval=1us CMD x", 'Interval "interval" cannot be less than 1ms'),
        ("HEALTHCHECK --interval=5 CMD x", 'time: missing unit in duration "5"'),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("RUN --network=moon x", 'invalid network mode "moon"'),
        ("RUN --security=none x", 'security "none" is not valid'),
        ("RUN --mount=from=$x y", "'from' doesn't support variable expansion, define alias stage instead"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    assert complaint(f"FROM a\n{text}") == f"dockerfile parse error line 2: {message}"


def test_a_file_begins_with_from() -> None:
    assert complaint("RUN x") == "no build stage in current context"


def test_a_stage_s_name_is_a_word() -> None:
    assert complaint("FROM a AS 1x") == (
        'dockerfile parse error line 1: invalid name for build stage: "1x", '
        "name can't start with a number or contain symbols"
    )


def test_a_copy_goes_somewhere() -> None:
    assert complaint("FROM a\nCOPY x") == (
        "dockerfile parse error line 2: COPY requires at least two arguments, but only one was provided. "
        "Destination could not be determined"
    )


# mounts


def mounted(flag: str) -> Mount:
    run = expand(instruction(f"RUN --mount={flag} x"), {"v": "/val"})
    assert isinstance(run, Run)
    return run.mounts[0]


@pytest.mark.parametrize(
    ("flag", "mount"),
    [
        ("target=/x", Mount(target="/x")),
        ("from=a,source=$v,dst=/y,rw", Mount(origin="a", source="/val", target="/y", read_only=False)),
        ("type=cache,target=/c,id=z,sharing=locked,uid=5,gid=6,mode=0700",
         Mount("cache", target="/c", id="z", sharing="locked", uid=5, gid=6, mode=0o700, read_only=False)),
        ("type=tmpfs,target=/t,size=1.5m", Mount("tmpfs", target="/t", size=3 << 19, read_only=False)),
        ("type=secret,id=s,required,env=S", Mount("secret", id="s", required=True, env="S")),
        ("type=ssh", Mount("ssh")),
    ],
)  # fmt: skip
def test_a_mount(flag: str, mount: Mount) -> None:
    assert mounted(flag) == mount


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("type=moon", 'unsupported mount type "moon"'),
        ("target", "invalid field 'target' must be a key=value pair"),
        ("nope=1", "unexpected key 'nope' in 'nope=1'"),
        ("type=bind,size=5", "unexpected key 'size' for mount type 'bind'"),
        ("type=bind,uid=5", 'uid not allowed for "bind" type mounts'),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,from=b", "secret mount should not have a from"),
        ("type=bind,sharing=private", "invalid cache sharing set for bind mount"),
        ("type=cache,sharing=x", 'unsupported sharing value "x"'),
        ("type=cache,mode=9", "invalid value 9 for mode"),
        ("ro=maybe", "invalid value for ro: maybe"),
        ("type=tmpfs,size=much", "invalid value for size: much"),
    ],
)
def test_a_wrong_mount(flag: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        mounted(flag)
    assert (caught.value.message, caught.value.line) == (message, 2)
