"""JSON text (RFC 8259) over `_json`, the accelerator behind the standard module.

`import json` costs 7 ms, because it imports `re`; `_json` costs a tenth (docs/design.md, "Python's
start-up is the enemy"). `_json` is private to CPython, so this one file may touch it: where it
changed, the public module serves, slower and right.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SPACE = " \t\n\r"

_scan: Callable[[str, int], tuple[Any, int]]
_encode: Callable[[Any, int], Any]

try:
    from _json import encode_basestring, make_encoder, make_scanner

    class _Context:
        """What json.JSONDecoder offers to the scanner."""

        strict = True
        object_hook = None
        object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = float
        memo: dict[str, str] = {}

    def _refuse(value: object) -> Any:
        raise TypeError(f"{type(value).__name__} has no JSON form")

    _scan = make_scanner(_Context)  # type: ignore[arg-type]  # typeshed says it wants a scanner
    _encode = make_encoder(None, _refuse, encode_basestring, None, ":", ",", False, False, True)
    if _scan('{"a":[1]}', 0) != ({"a": [1]}, 9) or "".join(_encode({"a": [1]}, 0)) != '{"a":[1]}':
        raise ImportError("_json works in another way than known")
except (ImportError, TypeError, AttributeError):  # another Python: its public module
    import json as _public

    _scan = _public.JSONDecoder().scan_once  # type: ignore[attr-defined]  # not in typeshed

    def _encode(value: Any, _level: int) -> Any:
        return (_public.dumps(value, separators=(",", ":"), ensure_ascii=False),)


def loads(text: str | bytes) -> Any:
    """Decode one JSON text. Raises InvalidArgument, with the position, when it is not one."""
    try:
        source = text if isinstance(text, str) else str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"invalid JSON: not UTF-8 at byte {error.start}") from None
    begin = 0
    while source[begin : begin + 1] in _SPACE and begin < len(source):
        begin += 1
    try:
        value, end = _scan(source, begin)
    except StopIteration as stop:
        raise InvalidArgument(f"invalid JSON at {_place(source, int(stop.value or 0))}") from None
    except ValueError as error:
        raise InvalidArgument(f"invalid JSON: {error}") from None
    except RecursionError:
        raise InvalidArgument("invalid JSON: nested too deeply") from None
    except SystemError:
        # Python 3.11's scanner raises nothing while the module that defines its error is not loaded.
        # Only for broken text, which no process reads that has changed its root.
        import json.decoder  # noqa: F401

        return loads(source)
    if source[end:].strip(_SPACE):
        raise InvalidArgument(f"invalid JSON: more text after the value at {_place(source, end)}")
    return value


def _place(source: str, position: int) -> str:
    column = position - source.rfind("\n", 0, position)
    return f"line {source.count(chr(10), 0, position) + 1} column {column}"


def dumps(value: Any) -> str:
    """Encode compactly. The value must be built of dict, list, tuple, str, int, float, bool, None."""
    return "".join(_encode(value, 0))


def dumps_indented(value: Any, indent: str = "  ", level: int = 0) -> str:
    """Encode for people, one member a line, as encoding/json's MarshalIndent of Go does."""
    inner, outer = "\n" + indent * (level + 1), "\n" + indent * level
    if isinstance(value, dict) and value:
        body = ("," + inner).join(
            f"{dumps(str(k))}: {dumps_indented(v, indent, level + 1)}" for k, v in value.items()
        )
        return "{" + inner + body + outer + "}"
    if isinstance(value, (list, tuple)) and value:
        return (
            "["
            + inner
            + ("," + inner).join(dumps_indented(v, indent, level + 1) for v in value)
            + outer
            + "]"
        )
    return dumps(value)
