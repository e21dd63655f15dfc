"""What a Dockerfile says, typed: one struct for each instruction, with the lines it stands on.

Words are as they were written: variables and quotes are still in them until `expand.expand` made a new
struct of the instruction, which happens when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nagaya.errors import InvalidArgument


class DockerfileError(InvalidArgument):
    """What is wrong with a Dockerfile. line: its number, counted from 1; 0 when it is about the whole."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message, subject=f"line {line}" if line else "Dockerfile")
        self.line = line


class Heredoc(msgspec.Struct, frozen=True):
    """A document in the Dockerfile. name: its end mark. expand: variables in it are replaced (the mark was
    not quoted). chomp: `<<-`, leading tabs go."""

    name: str
    content: str
    expand: bool = True
    chomp: bool = False

    @property
    def text(self) -> str:
        """The content, without leading tabs when it was marked so."""
        if not self.chomp:
            return self.content
        return "".join(line.lstrip("\t") for line in self.content.splitlines(keepends=True))


class Pair(msgspec.Struct, frozen=True):
    """key=value; value None: ARG without a default. old: `ENV key value` (no equals sign)."""

    key: str
    value: str | None
    old: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value or ''}"


class CommandLine(msgspec.Struct, frozen=True):
    """What RUN, CMD and ENTRYPOINT run. shell: the stage's shell comes first, and `words` is its one line."""

    words: tuple[str, ...]
    shell: bool
    heredocs: tuple[Heredoc, ...] = ()


class Mount(msgspec.Struct, frozen=True):
    """RUN --mount. kind: bind, cache, tmpfs, secret or ssh. source "" is the whole of `origin` (a stage, an
    image; "" is the context). size: bytes, 0 is no limit. env: a secret's variable, "" is named after its
    id, None is none."""

    kind: str = "bind"
    origin: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = True
    size: int = 0
    id: str = ""
    sharing: str = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """What all have. text: as written, continuation lines joined (what docker prints as a step).
    line, end: the first and last line of it in the file, counted from 1."""

    text: str = ""
    line: int = 0
    end: int = 0


class Arg(Instruction, frozen=True, kw_only=True):
    """ARG name[=default] ..."""

    args: tuple[Pair, ...]


class Env(Instruction, frozen=True, kw_only=True):
    """ENV name=value ..."""

    pairs: tuple[Pair, ...]


class Label(Instruction, frozen=True, kw_only=True):
    """LABEL name=value ...; literal: from the command line, nothing in it is a variable."""

    pairs: tuple[Pair, ...]
    literal: bool = False


class Maintainer(Instruction, frozen=True, kw_only=True):
    """MAINTAINER name"""

    name: str


class Transfer(Instruction, frozen=True, kw_only=True):
    """What COPY and ADD share. inline: files written in the Dockerfile, named after their end marks."""

    sources: tuple[str, ...]
    inline: tuple[Heredoc, ...] = ()
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


class Copy(Transfer, frozen=True, kw_only=True):
    """COPY; origin: the --from, a stage's name or number, or an image; "" is the context."""

    origin: str = ""
    parents: bool = False


class Add(Transfer, frozen=True, kw_only=True):
    """ADD; unpack None: archives of the context are unpacked, downloaded ones are not."""

    checksum: str = ""
    unpack: bool | None = None


class Run(Instruction, frozen=True, kw_only=True):
    """RUN. mounts are known only after expansion; mount_flags are their texts. network: default, none or
    host. security: sandbox or insecure."""

    command: CommandLine
    mount_flags: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: str = "default"
    security: str = "sandbox"


class Cmd(Instruction, frozen=True, kw_only=True):
    """CMD"""

    command: CommandLine


class Entrypoint(Instruction, frozen=True, kw_only=True):
    """ENTRYPOINT"""

    command: CommandLine


class Healthcheck(Instruction, frozen=True, kw_only=True):
    """HEALTHCHECK; test: ("NONE",), ("CMD", ...) or ("CMD-SHELL", line). Nanoseconds, 0: unset."""

    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Expose(Instruction, frozen=True, kw_only=True):
    """EXPOSE port[-port][/protocol] ..."""

    ports: tuple[str, ...]


class User(Instruction, frozen=True, kw_only=True):
    """USER"""

    user: str


class Volume(Instruction, frozen=True, kw_only=True):
    """VOLUME"""

    paths: tuple[str, ...]


class Workdir(Instruction, frozen=True, kw_only=True):
    """WORKDIR"""

    path: str


class StopSignal(Instruction, frozen=True, kw_only=True):
    """STOPSIGNAL"""

    signal: str


class Shell(Instruction, frozen=True, kw_only=True):
    """SHELL ["program", "argument"]"""

    words: tuple[str, ...]


class Onbuild(Instruction, frozen=True, kw_only=True):
    """ONBUILD; expression: the instruction, its documents included, for `parse.parse_trigger`."""

    expression: str


class From(Instruction, frozen=True, kw_only=True):
    """FROM [--platform=p] base [AS name]; name is in lower case."""

    base: str
    name: str = ""
    platform: str = ""


class Stage(msgspec.Struct, frozen=True):
    """A FROM and what follows it."""

    begin: From
    instructions: tuple[Instruction, ...] = ()


class Warning(msgspec.Struct, frozen=True):
    """What is allowed and unwise. rule: its name in docker's list of checks."""

    rule: str
    message: str
    line: int


class Dockerfile(msgspec.Struct, frozen=True):
    """A whole file. args: those before the first FROM, in order. escape: backslash or backtick. syntax,
    check: the directives of those names, "" when absent."""

    args: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    escape: str = "\\"
    syntax: str = ""
    check: str = ""
    warnings: Sequence[Warning] = ()
