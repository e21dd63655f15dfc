"""What `nagaya build` sends, and how it shows what comes back."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nagaya.cli import context, steps
from nagaya.cli.context import Context
from nagaya.cli.flags import UsageError, parse
from nagaya.cli.verbs import build
from nagaya.errors import InvalidArgument, NagayaError


def tree(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(found: Context) -> list[str]:
    return [member.name for member in opened(found)]


def opened(found: Context) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(found.members)))


def test_a_directory_with_all_that_is_in_it(tmp_path: Path) -> None:
    tree(tmp_path, Dockerfile="FROM a", d__f="1", z="2")
    os.link(tmp_path / "z", tmp_path / "d" / "hard")
    os.symlink("../z", tmp_path / "d" / "soft")
    (tmp_path / "d" / "f").chmod(0o4750)
    os.utime(tmp_path / "d" / "f", (5.5, 5.5))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    found = context.of_directory(str(tmp_path), "")
    assert found.dockerfile == "Dockerfile"
    archive = opened(found)
    assert archive.getnames() == ["Dockerfile", "d", "d/f", "d/hard", "d/soft", "z"]
    file, hard, soft, last = (archive.getmember(name) for name in ("d/f", "d/hard", "d/soft", "z"))
    assert (file.mode, file.mtime, file.uid, file.gid, file.uname) == (0o4750, 5, 0, 0, "")
    assert hard.isreg() and soft.linkname == "../z" and last.islnk() and last.linkname == "d/hard"


def test_dockerignore(tmp_path: Path) -> None:
    tree(tmp_path, Dockerfile="", a="", d__x="", d__e__y="", d__e__z="", k__n="", m__n="", o__p__q="")
    tree(tmp_path, **{".dockerignore": "*\n!a\n!d/e/y\n!m\nm/n\n!o/**/q\n"})
    found = names(context.of_directory(str(tmp_path), ""))
    # the daemon needs the first two, and takes them away itself
    assert found == [".dockerignore", "Dockerfile", "a", "d", "d/e", "d/e/y", "m", "o", "o/p", "o/p/q"]


def test_an_excluded_dockerfile_is_sent_all_the_same(tmp_path: Path) -> None:
    tree(tmp_path, sub__f="", sub__g="", **{".dockerignore": "sub"})
    found = context.of_directory(str(tmp_path), str(tmp_path / "sub" / "f"))
    assert (found.dockerfile, names(found)) == ("sub/f", [".dockerignore", "sub", "sub/f"])


def test_the_ignore_file_of_one_dockerfile(tmp_path: Path) -> None:
    tree(tmp_path, a="", b="", **{"x.Dockerfile": "", "x.Dockerfile.dockerignore": "a", ".dockerignore": "b"})
    found = context.of_directory(str(tmp_path), str(tmp_path / "x.Dockerfile"))
    archive = opened(found)
    assert "a" not in archive.getnames() and "b" in archive.getnames()
    rules = archive.extractfile(".dockerignore")
    assert rules is not None and rules.read() == b"a"
    assert archive.getnames().count(".dockerignore") == 1


def test_a_dockerfile_from_elsewhere_has_a_name_that_no_copy_takes(tmp_path: Path) -> None:
    tree(tmp_path, c__a="", f="FROM x")
    found = context.of_directory(str(tmp_path / "c"), str(tmp_path / "f"))
    assert found.dockerfile.startswith(".dockerfile.")
    archive = opened(found)
    assert archive.getnames() == ["a", found.dockerfile, ".dockerignore"]
    text, rules = (archive.extractfile(name) for name in (found.dockerfile, ".dockerignore"))
    assert text is not None and text.read() == b"FROM x"
    assert rules is not None and rules.read().decode() == f".dockerignore\n{found.dockerfile}\n"


def test_the_current_directory_s_dockerfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, c__Dockerfile="")
    monkeypatch.chdir(tmp_path)
    assert context.of_directory("c", "c/Dockerfile").dockerfile == "Dockerfile"
    with pytest.raises(NagayaError, match="unable to evaluate symlinks in Dockerfile path: lstat"):
        context.of_directory("c", "Dockerfile")
    tree(tmp_path, l__dockerfile="")
    assert context.of_directory("l", "").dockerfile == "dockerfile"


def test_what_is_no_context(tmp_path: Path) -> None:
    tree(tmp_path, file="", **{"d__.dockerignore": "[", "d__Dockerfile": ""})
    with pytest.raises(NagayaError, match='unable to prepare context: path "/nosuch" not found'):
        context.of_directory("/nosuch", "")
    with pytest.raises(NagayaError, match="not a directory"):
        context.of_directory(str(tmp_path / "file"), "")
    with pytest.raises(InvalidArgument, match="syntax error in pattern"):
        context.of_directory(str(tmp_path / "d"), "")
    with pytest.raises(NagayaError, match="can't use stdin for both"):
        context.of_stdin("-")


@pytest.fixture
def stdin() -> Iterator[int]:
    """The end to write to what is our stdin meanwhile."""
    saved = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield writing
    finally:
        os.dup2(saved, 0)
        os.close(saved)


def test_stdin_is_a_dockerfile_or_an_archive(stdin: int) -> None:
    os.write(stdin, b"FROM a\n")
    os.close(stdin)
    found = context.of_stdin("")
    assert (found.dockerfile, names(found)) == ("Dockerfile", ["Dockerfile"])


def test_an_archive_on_stdin_goes_on_as_it_is(stdin: int) -> None:
    data = b"".join(context.of_text(b"FROM a\n").members)
    os.write(stdin, data)
    os.close(stdin)
    found = context.of_stdin("sub/f")
    assert (found.dockerfile, b"".join(found.members)) == ("sub/f", data)


# flags


def test_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"\x00hi")
    monkeypatch.setenv("TOKEN", "t")
    assert build._secret(f"id=a,src={path}") == ("a", "AGhp")
    assert build._secret("id=a,env=TOKEN") == ("a", "dA==")
    assert build._secret("id=TOKEN") == ("TOKEN", "dA==")
    assert build._secret("id=a,type=env,src=TOKEN") == ("a", "dA==")
    for word in ("src=x", "id=a,nope=1", "id", "id=a,type=x"):
        with pytest.raises(UsageError, match="invalid value for --secret"):
            build._secret(word)
    for word, why in (
        ("id=a,src=/nosuch", "no such file"),
        ("id=a,env=NOSUCH", "there is no variable NOSUCH"),
    ):
        with pytest.raises(NagayaError, match=why):
            build._secret(word)
    path.write_bytes(bytes(600_000))
    with pytest.raises(NagayaError, match="is larger than"):
        build._secret(f"id=a,src={path}")


def test_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(NagayaError, match="SSH_AUTH_SOCK is not set"):
        build._agent("default")
    key = tmp_path / "key"
    key.write_text("")
    with pytest.raises(NagayaError, match="is no agent's socket"):
        build._agent(f"default={key}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    assert build._agent("default") == ("default", str(tmp_path / "agent"))


@pytest.mark.parametrize(
    ("word", "output"),
    [
        ("", ("", "")),
        ("out", ("local", "out")),
        ("-", ("tar", "")),
        ("type=local,dest=x", ("local", "x")),
        ("type=tar,dest=x", ("tar", "x")),
        ("type=tar,dest=-", ("tar", "")),
    ],
)
def test_an_output(word: str, output: tuple[str, str]) -> None:
    assert build._output(word) == output


@pytest.mark.parametrize(
    "word", ["type=oci,dest=x", "type=local", "type=local,dest=-", "type=tar,x=y", "dest=x"]
)
def test_what_is_no_output(word: str) -> None:
    with pytest.raises(UsageError):
        build._output(word)


def test_a_bare_build_argument_has_our_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.delenv("B", raising=False)
    words = ["--build-arg", "A", "--build-arg", "B", "--build-arg", "C=2=3", "."]
    query = build._query(parse(build.FLAGS, words))
    assert query["buildargs"] == '{"A":"1","B":null,"C":"2=3"}'


# what comes back


def shown(how: str, *messages: dict[str, object]) -> tuple[str, str]:
    reading, writing = os.pipe()
    try:
        image = steps.show(iter(messages), how=how, fd=writing)
    finally:
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            text = file.read().decode()
    return image, text


STEPS: tuple[dict[str, object], ...] = (
    {"stream": "Step 1/2 : FROM a\n"},
    {"status": "Pulling from a", "id": "latest"},
    {"status": "Downloading", "id": "x", "progressDetail": {"current": 1}},
    {"stream": " ---> 1\n"},
    {"stream": "Step 2/2 : RUN x\n"},
    {"stream": " ---> Using cache\n"},
    {"stream": " ---> 2\n"},
    {"aux": {"ID": "sha256:ab"}},
    {"stream": "Successfully built ab\n"},
)


def test_plain() -> None:
    image, text = shown("plain", *STEPS)
    assert image == "sha256:ab"
    assert text == (
        "Step 1/2 : FROM a\nlatest: Pulling from a\n ---> 1\nStep 2/2 : RUN x\n ---> Using cache\n ---> 2\n"
        "Successfully built ab\n"
    )


def test_quiet() -> None:
    assert shown("quiet", {"stream": "sha256:ab\n"}) == ("sha256:ab", "")
    assert shown("quiet", *STEPS) == ("sha256:ab", "")


def test_on_a_terminal() -> None:
    image, text = shown("tty", *STEPS)
    assert image == "sha256:ab"
    lines = [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]
    assert lines[0].startswith("[1/2] FROM a  \x1b[1m") and lines[0].endswith("s\x1b[0m")
    assert lines[1:] == ["[2/2] RUN x  \x1b[1mCACHED\x1b[0m", "Successfully built ab", ""]
    assert "latest: Pulling from a" in text


def test_a_failure_on_a_terminal_shows_what_the_step_said(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with pytest.raises(steps.BuildFailed) as caught, os.fdopen(writing, "wb"):
        steps.show(
            iter(
                [
                    {"stream": "Step 1/1 : RUN x\n"},
                    {"stream": "one\ntw"},
                    {"stream": "o\nthree"},
                    {"error": "it failed", "errorDetail": {"code": 7, "message": "it failed"}},
                ]
            ),
            how="tty",
            fd=writing,
        )
    assert (caught.value.status, str(caught.value)) == (7, "it failed")
    with os.fdopen(reading, "rb") as file:
        assert file.read().decode().endswith("[1/1] RUN x\x1b[0m\none\ntwo\nthree\n")
