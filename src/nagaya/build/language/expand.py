"""An instruction whose turn has come: variables put in, quotes taken away.

Which words of an instruction have variables is moby/buildkit's instructions/commands.go: not those of RUN,
CMD, ENTRYPOINT, SHELL, HEALTHCHECK and ONBUILD, which the container's shell or a later build reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import TypeVar

from msgspec.structs import replace

from nagaya.build.language import mounts
from nagaya.build.language.ast import (
    Add,
    Arg,
    Copy,
    DockerfileError,
    Env,
    Expose,
    Heredoc,
    Instruction,
    Label,
    Pair,
    Run,
    StopSignal,
    Transfer,
    User,
    Volume,
    Workdir,
)
from nagaya.build.language.variables import Lexer

T = TypeVar("T", bound=Transfer)


def expand(instruction: Instruction, variables: Mapping[str, str], escape: str = "\\") -> Instruction:
    """The same instruction with these variables put in; RUN gets its mounts. `text` stays as written.

    Raises DockerfileError with the instruction's line.
    """
    try:
        return _expanded(instruction, Lexer(variables, escape))
    except DockerfileError as error:
        raise DockerfileError(error.message, error.line or instruction.line) from None


def word(text: str, variables: Mapping[str, str], escape: str = "\\") -> str:
    """One word, such as FROM's base. Raises DockerfileError."""
    return Lexer(variables, escape).word(text)


@singledispatch
def _expanded(instruction: Instruction, lexer: Lexer) -> Instruction:
    return instruction


@_expanded.register
def _(instruction: Env, lexer: Lexer) -> Env:
    return replace(instruction, pairs=_pairs(instruction.pairs, lexer.word))


@_expanded.register
def _(instruction: Label, lexer: Lexer) -> Label:
    if instruction.literal:
        return instruction
    return replace(instruction, pairs=_pairs(instruction.pairs, lexer.word))


@_expanded.register
def _(instruction: Arg, lexer: Lexer) -> Arg:
    return replace(instruction, args=_pairs(instruction.args, lexer.word))


@_expanded.register
def _(instruction: Expose, lexer: Lexer) -> Expose:
    ports = [port for word in instruction.ports for port in lexer.words(word)]  # one word may become several
    return replace(instruction, ports=tuple(ports))


@_expanded.register
def _(instruction: User, lexer: Lexer) -> User:
    return replace(instruction, user=lexer.word(instruction.user))


@_expanded.register
def _(instruction: Workdir, lexer: Lexer) -> Workdir:
    return replace(instruction, path=lexer.word(instruction.path))


@_expanded.register
def _(instruction: StopSignal, lexer: Lexer) -> StopSignal:
    return replace(instruction, signal=lexer.word(instruction.signal))


@_expanded.register
def _(instruction: Volume, lexer: Lexer) -> Volume:
    return replace(instruction, paths=tuple(map(lexer.word, instruction.paths)))


@_expanded.register
def _(instruction: Run, lexer: Lexer) -> Run:
    parsed = [mounts.parse(flag, lexer.word) for flag in instruction.mount_flags]
    return replace(instruction, mounts=tuple(parsed))


@_expanded.register
def _(instruction: Copy, lexer: Lexer) -> Copy:
    return _transfer(instruction, lexer)


@_expanded.register
def _(instruction: Add, lexer: Lexer) -> Add:
    return replace(_transfer(instruction, lexer), checksum=lexer.word(instruction.checksum))


def _transfer(instruction: T, lexer: Lexer) -> T:
    return replace(
        instruction,
        sources=tuple(map(lexer.word, instruction.sources)),
        inline=tuple(_inline(heredoc, lexer.variables) for heredoc in instruction.inline),
        destination=lexer.word(instruction.destination),
        chown=lexer.word(instruction.chown),
        chmod=lexer.word(instruction.chmod),
    )


def _inline(heredoc: Heredoc, variables: Mapping[str, str]) -> Heredoc:
    """In a document quotes mean nothing, and the escape is always the backslash, as in the shell's."""
    if not heredoc.expand:
        return heredoc
    text = Lexer(variables, quotes=False).word(heredoc.text)
    return replace(heredoc, content=text, chomp=False)


def _pairs(pairs: tuple[Pair, ...], word: Callable[[str], str]) -> tuple[Pair, ...]:
    return tuple(
        replace(pair, key=word(pair.key), value=None if pair.value is None else word(pair.value))
        for pair in pairs
    )
