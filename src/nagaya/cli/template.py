"""Go's text/template, as far as `--format` needs it: fields, pipelines, variables, range, if, with.

Grammar: pkg.go.dev/text/template. Functions besides Go's: those of docker's command line (json, join,
split, lower, upper, title, pad, truncate, println). Data is plain: dict, list, str, int, float, bool, None.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_DELIMITERS = " \t\r\n"
_MISSING = object()


class TemplateError(InvalidArgument):
    """The template cannot be parsed, or asks for what is not there."""


class Node:
    """A piece of the template: kind is text, action, if, range, with."""

    __slots__ = ("body", "kind", "names", "otherwise", "pipe", "text")

    def __init__(self, kind: str, text: str = "", pipe: list[list[Any]] | None = None) -> None:
        self.kind = kind
        self.text = text
        self.pipe = pipe or []
        self.names: list[str] = []
        self.body: list[Node] = []
        self.otherwise: list[Node] = []


class Template:
    """A parsed template. Raises TemplateError."""

    def __init__(self, source: str) -> None:
        self._pieces = _split(source)
        self._nodes, end = self._block()
        if end:
            raise TemplateError(f"template parsing error: unexpected {{{{{end}}}}}")

    def render(self, data: Mapping[str, Any]) -> str:
        """The text for this data. Raises TemplateError."""
        out: list[str] = []
        _run(self._nodes, data, {"$": data}, out)
        return "".join(out)

    def _block(self) -> tuple[list[Node], str]:
        """Nodes up to {{end}}, {{else ...}} or the end of the source, and what ended them."""
        nodes: list[Node] = []
        while self._pieces:
            is_action, text = self._pieces.pop(0)
            if not is_action:
                nodes.append(Node("text", text))
                continue
            words = _words(text)
            if not words:
                raise TemplateError("template parsing error: missing value for command")
            head = words[0]
            if head in ("end", "else"):
                return nodes, text.strip()
            if head in ("if", "range", "with"):
                nodes.append(self._control(str(head), words[1:]))
            else:
                nodes.append(_action("action", words))
        return nodes, ""

    def _control(self, kind: str, words: list[Any]) -> Node:
        node = _action(kind, words)
        node.body, end = self._block()
        if end.startswith("else"):
            rest = end.removeprefix("else").strip()
            if rest.startswith("if "):
                node.otherwise = [self._control("if", _words(rest[3:]))]
                return node
            node.otherwise, end = self._block()
        if end != "end":
            raise TemplateError(f"template parsing error: {{{{{kind}}}}} without {{{{end}}}}")
        return node


def _split(source: str) -> list[tuple[bool, str]]:
    """[(is action, text)], with the blanks trimmed that {{- and -}} ask for."""
    pieces: list[tuple[bool, str]] = []
    rest, trim = source, False
    while rest:
        text, opened, rest = rest.partition("{{")
        if trim:
            text = text.lstrip(_DELIMITERS)
        trim = False
        if opened and rest[:2] in ("- ", "-\t", "-\n"):
            text, rest = text.rstrip(_DELIMITERS), rest[2:]
        if text:
            pieces.append((False, text))
        if not opened:
            break
        end = _end_of_action(rest)
        action, rest = rest[:end], rest[end + 2 :]
        if action[-2:] in (" -", "\t-", "\n-"):
            action, trim = action[:-2], True
        if not action.strip().startswith("/*"):
            pieces.append((True, action))
    return pieces


def _end_of_action(text: str) -> int:
    """Where the closing braces are; those inside of strings do not count."""
    quote = ""
    skip = False
    for index, char in enumerate(text):
        if skip:
            skip = False
        elif quote:
            skip = char == "\\" and quote == '"'
            if char == quote:
                quote = ""
        elif char in "\"`'":
            quote = char
        elif text.startswith("}}", index):
            return index
    raise TemplateError("template parsing error: unclosed action")


def _words(text: str) -> list[Any]:
    """Tokens: str for names, fields, "|", "(", ")", ":=", "=", ","; ("constant", value) for literals."""
    words: list[Any] = []
    index = 0
    while index < len(text):
        char = text[index]
        if char in _DELIMITERS:
            index += 1
        elif char in '"`':
            end = index + 1
            while end < len(text) and text[end] != char:
                end += 2 if text[end] == "\\" and char == '"' else 1
            if end >= len(text):
                raise TemplateError("template parsing error: unterminated quoted string")
            raw = text[index : end + 1]
            words.append(("constant", _unquote(raw) if char == '"' else raw[1:-1]))
            index = end + 1
        elif text.startswith(":=", index):
            words.append(":=")
            index += 2
        elif char in "()|,=":
            words.append(char)
            if char == ")" and text[index + 1 : index + 2] == ".":
                words.append(").")  # a field of what is in parentheses
            index += 1
        else:
            end = index
            while (
                end < len(text)
                and text[end] not in _DELIMITERS + '()|,="`'
                and not text.startswith(":=", end)
            ):
                end += 1
            words.append(_literal(text[index:end]))
            index = end
    return words


def _unquote(raw: str) -> str:
    try:
        return str(json.loads(raw))
    except InvalidArgument:
        raise TemplateError(f"template parsing error: bad string {raw}") from None


def _literal(word: str) -> Any:
    if word in ("true", "false"):
        return ("constant", word == "true")
    if word == "nil":
        return ("constant", None)
    if word[0].isdecimal() or (word[0] in "+-" and word[1:2].isdecimal()):
        try:
            return ("constant", int(word, 0))
        except ValueError:
            try:
                return ("constant", float(word))
            except ValueError:
                raise TemplateError(f"template parsing error: bad number {word!r}") from None
    if word[0] not in ".$" and not word.replace("_", "a").isalnum():
        raise TemplateError(f"template parsing error: unexpected {word!r}")
    return word


def _action(kind: str, words: list[Any]) -> Node:
    node = Node(kind)
    for mark in (":=", "="):
        if mark in words:
            where = words.index(mark)
            node.names = [str(w) for w in words[:where] if w != ","]
            if not all(name.startswith("$") for name in node.names):
                raise TemplateError("template parsing error: only $variables can be assigned to")
            words = words[where + 1 :]
            break
    node.pipe, rest = _pipeline(words)
    if rest:
        raise TemplateError("template parsing error: unexpected )")
    return node


def _pipeline(words: list[Any]) -> tuple[list[list[Any]], list[Any]]:
    """Commands separated by "|", each a list of operands; parentheses become ("pipe", commands, fields)."""
    commands: list[list[Any]] = [[]]
    while words:
        word, words = words[0], words[1:]
        if word == "|":
            commands.append([])
        elif word == ")":
            return _checked(commands), words
        elif word == "(":
            inner, words = _pipeline(words)
            fields = ""
            if words[:1] == [")."]:
                fields, words = str(words[1]), words[2:]
            commands[-1].append(("pipe", inner, fields))
        else:
            commands[-1].append(word)
    return _checked(commands), []


def _checked(commands: list[list[Any]]) -> list[list[Any]]:
    for command in commands:
        if not command:
            raise TemplateError("template parsing error: missing value for command")
        head = command[0]
        if isinstance(head, str) and head[0] not in ".$" and head not in FUNCTIONS:
            raise TemplateError(f'template parsing error: template: :1: function "{head}" not defined')
    return commands


def _run(nodes: list[Node], dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if node.kind == "text":
            out.append(node.text)
            continue
        value = _evaluate(node.pipe, dot, variables)
        if node.kind == "range":
            _range(node, value, dot, variables, out)
            continue
        for name in node.names:
            variables[name] = value
        if node.kind == "action":
            if not node.names:
                out.append(_nothing(node.pipe) if value is None else show(value))
        elif truth(value):
            _run(node.body, value if node.kind == "with" else dot, dict(variables), out)
        else:
            _run(node.otherwise, dot, dict(variables), out)


# fields of docker's types that are maps, or pointers; what else can be null is a list
_MAPS = frozenset(
    "Annotations Containers Data DriverOpts ExposedPorts Labels Networks Options PortBindings Ports Services "
    "Status StorageOpt Sysctls Tmpfs UsageData Volumes".split()
)
_POINTERS = frozenset(
    "Health Healthcheck IPAMConfig Init MemorySwappiness OomKillDisable PidsLimit StopTimeout".split()
)


def _nothing(pipe: list[list[Any]]) -> str:
    """A null as Go shows one of its field's type."""
    word = pipe[0][0] if len(pipe) == 1 and len(pipe[0]) == 1 else ""
    name = word.rpartition(".")[2] if isinstance(word, str) and "." in word else ""
    if not name or name in _POINTERS:
        return "<nil>"
    return "map[]" if name in _MAPS else "[]"


def _range(node: Node, value: Any, dot: Any, variables: dict[str, Any], out: list[str]) -> None:
    if isinstance(value, dict):
        entries = [(key, value[key]) for key in sorted(value)]
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    elif value is None or value is _MISSING:
        entries = []
    else:
        raise TemplateError(f"template: range can't iterate over {show(value)}")
    for key, item in entries:
        inner = dict(variables)
        if len(node.names) == 2:
            inner[node.names[0]], inner[node.names[1]] = key, item
        elif node.names:
            inner[node.names[0]] = item
        _run(node.body, item, inner, out)
    if not entries:
        _run(node.otherwise, dot, dict(variables), out)


def _evaluate(pipe: list[list[Any]], dot: Any, variables: dict[str, Any]) -> Any:
    value: Any = None
    for number, command in enumerate(pipe):
        head = command[0]
        extra = [value] if number else []
        if isinstance(head, str) and head in FUNCTIONS:
            if head in ("and", "or"):
                value = _short_circuit(head, [*command[1:]], extra, dot, variables)
                continue
            arguments = [_operand(word, dot, variables) for word in command[1:]] + extra
            try:
                value = FUNCTIONS[head](*arguments)
            except TemplateError:
                raise
            except (TypeError, ValueError, KeyError, IndexError) as error:
                raise TemplateError(f"template parsing error: error calling {head}: {error}") from None
        else:
            value = _operand(head, dot, variables)
            # Label "x": a field that is a function, as docker's rows have
            if callable(value):
                value = value(*[_operand(word, dot, variables) for word in command[1:]], *extra)
            elif len(command) > 1 or extra:
                raise TemplateError(f"template parsing error: {head} is not a function but has arguments")
    return value


def _short_circuit(name: str, words: list[Any], extra: list[Any], dot: Any, variables: dict[str, Any]) -> Any:
    value: Any = None
    for word in words:
        value = _operand(word, dot, variables)
        if truth(value) == (name == "or"):
            return value
    return extra[0] if extra else value


def _operand(word: Any, dot: Any, variables: dict[str, Any]) -> Any:
    if isinstance(word, tuple):
        if word[0] == "constant":
            return word[1]
        return _fields(_evaluate(word[1], dot, variables), word[2])
    if word.startswith("$"):
        name, point, fields = word.partition(".")
        if name not in variables:
            raise TemplateError(f'template parsing error: undefined variable "{name}"')
        return _fields(variables[name], point + fields)
    if word.startswith("."):
        return _fields(dot, word)
    if word in FUNCTIONS:
        return FUNCTIONS[word]()
    raise TemplateError(f'template parsing error: template: :1: function "{word}" not defined')


def _fields(value: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        if not name:
            continue
        if value is _MISSING or value is None:
            raise TemplateError(
                f"template parsing error: at <{path}>: nil pointer evaluating interface {{}}.{name}"
            )
        if not isinstance(value, dict):
            raise TemplateError(f"template parsing error: at <{path}>: can't evaluate field {name}")
        if name not in value:
            raise TemplateError(f'template parsing error: at <{path}>: map has no entry for key "{name}"')
        value = value[name]
    return value


def truth(value: Any) -> bool:
    """Go's truth: false, 0, nil and what is empty are false."""
    return value is not _MISSING and bool(value)


def show(value: Any) -> str:
    """A value as fmt.Print writes it."""
    if value is _MISSING:
        return "<no value>"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list | tuple):
        return "[" + " ".join(show(item) for item in value) + "]"
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, _MISSING) if isinstance(value, dict) else value[key]
    return value


def _printf(format: str, *arguments: Any) -> str:
    shown = tuple(json.dumps(a) if isinstance(a, str) and "%q" in format else a for a in arguments)
    converted = format.replace("%v", "%s").replace("%q", "%s")
    return converted % tuple(
        show(a) if not isinstance(a, int | float) or isinstance(a, bool) else a for a in shown
    )


def _equal(first: Any, *others: Any) -> bool:
    return any(first == other for other in others)


def _pad(text: str, before: int, after: int) -> str:
    return " " * before + text + " " * after if text else text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": json.dumps,
    "join": lambda items, separator: separator.join(show(item) for item in items or ()),
    "split": lambda text, separator: text.split(separator),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "pad": _pad,
    "truncate": lambda text, width: text[:width],
    "println": lambda *items: " ".join(show(item) for item in items) + "\n",
    "print": lambda *items: "".join(show(item) for item in items),
    "printf": _printf,
    "len": len,
    "index": _index,
    "slice": lambda value, *bounds: (
        value[slice(*bounds)] if len(bounds) > 1 else value[bounds[0] if bounds else 0 :]
    ),
    "not": lambda value: not truth(value),
    "and": lambda *items: items[-1],
    "or": lambda *items: items[-1],
    "eq": _equal,
    "ne": lambda first, second: first != second,
    "lt": lambda first, second: first < second,
    "le": lambda first, second: first <= second,
    "gt": lambda first, second: first > second,
    "ge": lambda first, second: first >= second,
}
