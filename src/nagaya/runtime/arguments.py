"""The command line, as urfave/cli of runc reads it: `--name value`, `--name=value`, one or two
dashes, options before positional arguments. argparse would cost 8 ms."""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What an option takes: nothing, a string, a whole number, or strings (given repeatedly)
FLAG, TEXT, NUMBER, LIST = "flag", "text", "number", "list"
_EMPTY: dict[str, Any] = {FLAG: False, TEXT: "", NUMBER: None, LIST: []}


class Option:
    """One option: its names without dashes, the first of which is its key."""

    __slots__ = ("default", "help", "kind", "names")

    def __init__(self, names: str, kind: str, help: str, default: Any = None) -> None:
        self.names = names.split()
        self.kind = kind
        self.help = help
        self.default: Any = _EMPTY[kind] if default is None else default


def parse(argv: list[str], options: list[Option], *, mixed: bool = False) -> tuple[dict[str, Any], list[str]]:
    """({key: value}, positional arguments). Parsing stops at "--", and at the first
    positional argument unless options may be mixed with these.

    Raises InvalidArgument for an unknown option or a value of the wrong kind.
    """
    by_name = {name: option for option in options for name in option.names}
    values: dict[str, Any] = {o.names[0]: o.default[:] if o.kind == LIST else o.default for o in options}
    position = 0
    positional: list[str] = []
    while position < len(argv):
        word = argv[position]
        if word == "--":
            position += 1
            break
        if not word.startswith("-") or word == "-":
            if not mixed:
                break
            positional.append(word)
            position += 1
            continue
        name, equals, value = word.lstrip("-").partition("=")
        option = by_name.get(name)
        if option is None:
            raise InvalidArgument(f"flag provided but not defined: -{name}", subject=name)
        key = option.names[0]
        position += 1
        if option.kind == FLAG:
            if equals and value not in ("true", "false", "1", "0"):
                raise InvalidArgument(f'invalid boolean value "{value}" for -{name}', subject=name)
            values[key] = not equals or value in ("true", "1")
            continue
        if not equals:
            if position >= len(argv):
                raise InvalidArgument(f"flag needs an argument: -{name}", subject=name)
            value = argv[position]
            position += 1
        if option.kind == LIST:
            values[key].append(value)
        elif option.kind == NUMBER:
            try:
                values[key] = int(value, 0)
            except ValueError:
                raise InvalidArgument(
                    f'invalid value "{value}" for flag -{name}: not a number', subject=name
                ) from None
        else:
            values[key] = value
    return values, [*positional, *argv[position:]]


def describe(options: list[Option]) -> str:
    """The OPTIONS lines of a help text."""
    rows = []
    for option in options:
        suffix = "" if option.kind == FLAG else " value"
        names = ", ".join(("--" if len(n) > 1 else "-") + n + suffix for n in option.names)
        rows.append((names, option.help))
    width = max((len(names) for names, _ in rows), default=0)
    return "\n".join(f"   {names:<{width}}  {text}" for names, text in rows)
