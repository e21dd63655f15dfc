"""Command-line flags as docker's users know them (the rules of Go's pflag), from tables of data.

Not argparse: it adds 8 ms to every start and has other rules: it guesses abbreviations, knows no
`--rm=false`, and treats `--` inside the container's command differently in every Python release.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Literal

    Kind = Literal["bool", "text", "list", "int"]


_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class UsageError(InvalidArgument):
    """What was asked for makes no sense: flags in conflict, a value nobody can use."""


class FlagError(UsageError):
    """A flag that does not exist, or a value that is none of its kind; the caller adds the verb's usage."""


class CountError(UsageError):
    """Too few or too many arguments."""


def bad_value(text: str, label: str, why: str) -> FlagError:
    """The error that says why `text` is no value of the flag with that label."""
    return FlagError(f'invalid argument "{text}" for "{label}" flag: {why}', subject=label)


class Flag:
    """One flag. kind "list" may be repeated; meta is the value's name in the help text."""

    __slots__ = ("default", "help", "kind", "meta", "name", "short")

    def __init__(
        self,
        name: str,
        help: str,
        *,
        short: str = "",
        kind: Kind = "bool",
        default: Any = None,
        meta: str = "",
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.kind = kind
        self.default: Any = (
            {"bool": False, "text": "", "list": None, "int": 0}[kind] if default is None else default
        )
        self.meta = meta or {"bool": "", "text": "string", "list": "list", "int": "int"}[kind]

    def label(self) -> str:
        """The flag as messages name it: "-m, --memory"."""
        return f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"

    def convert(self, text: str) -> Any:
        """The value of `text`. Raises FlagError."""
        if self.kind == "bool":
            if text not in _TRUE + _FALSE:
                raise self.refuse(text, "not a boolean (true or false)")
            return text in _TRUE
        if self.kind == "int":
            try:
                return int(text, 0)
            except ValueError:
                raise self.refuse(text, "not a whole number") from None
        return text

    def refuse(self, text: str, why: str) -> FlagError:
        """The error that says why `text` is no value of this flag."""
        return bad_value(text, self.label(), why)


class Given:
    """A parsed command line: values by flag name, the positional arguments, and which flags were given."""

    __slots__ = ("args", "changed", "values")

    def __init__(self, values: dict[str, Any], args: list[str], changed: set[str]) -> None:
        self.values = values
        self.args = args
        self.changed = changed

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def parse(flags: Sequence[Flag], argv: Sequence[str], *, interspersed: bool = True) -> Given:
    """Parse argv. Without `interspersed` the first positional argument ends the flags, as it must where
    a container's own command line follows. Raises FlagError in pflag's words."""
    long = {flag.name: flag for flag in flags}
    short = {flag.short: flag for flag in flags if flag.short}
    given = Given({f.name: [] if f.kind == "list" else f.default for f in flags}, [], set())
    rest = list(argv)
    rest.reverse()

    def keep(flag: Flag, text: str) -> None:
        value = flag.convert(text)
        if flag.kind == "list":
            given.values[flag.name].append(value)
        else:
            given.values[flag.name] = value
        given.changed.add(flag.name)

    while rest:
        word = rest.pop()
        if word == "--":
            given.args += reversed(rest)
            break
        if len(word) < 2 or word[0] != "-":
            given.args.append(word)
            if not interspersed:
                given.args += reversed(rest)
                break
        elif word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            if name not in long:
                raise FlagError(f"unknown flag: --{name}")
            flag = long[name]
            if not equals and flag.kind == "bool":
                text = "true"
            elif not equals:
                if not rest:
                    raise FlagError(f"flag needs an argument: --{name}")
                text = rest.pop()
            keep(flag, text)
        else:
            _cluster(word, short, rest, keep)
    return given


def _cluster(word: str, short: dict[str, Flag], rest: list[str], keep: Any) -> None:
    """Shorthands: "-it", "-p80:80", "-e=A=b", "-e A=b"."""
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in short:
            raise FlagError(f"unknown shorthand flag: '{letter}' in {word}")
        flag = short[letter]
        if letters.startswith("="):
            keep(flag, letters[1:])
            return
        if flag.kind == "bool":
            keep(flag, "true")
        elif letters:
            keep(flag, letters)
            return
        elif rest:
            keep(flag, rest.pop())
        else:
            raise FlagError(f"flag needs an argument: '{letter}' in {word}")


def help_text(flags: Sequence[Flag], width: int = 100) -> str:
    """The "Options:" block of a verb's help."""
    rows = []
    for flag in sorted(flags, key=lambda f: f.name):
        left = f"-{flag.short}, --{flag.name}" if flag.short else f"    --{flag.name}"
        rows.append((f"  {left} {flag.meta}".rstrip(), flag.help))
    column = max((len(left) for left, _ in rows), default=0) + 3
    lines = []
    for left, text in rows:
        line = left.ljust(column)
        for word in text.split():
            if len(line) + len(word) > width and line.strip():
                lines.append(line.rstrip())
                line = " " * column
            line += word + " "
        lines.append(line.rstrip())
    return "\n".join(lines)
