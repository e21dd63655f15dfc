"""Names of members in any case: Docker's API is Go's encoding/json, which takes `detachKeys` for `DetachKeys`
where no member has that very name. Some clients count on it."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import inspect

# {name in lower case: (name, how its value is looked at)}, a list's or map's element, or nothing to do
_Members = dict[str, tuple[str, "_Shape"]]


class _Shape(msgspec.Struct):
    """Where the structs are in a type."""

    members: _Members | None = None
    element: _Shape | None = None  # of a list
    value: _Shape | None = None  # of a map, whose keys are data


def canonical(document: Any, kind: Any) -> bool:
    """Rename the members of a decoded document, in place, to those that `kind`, a struct, has; were any
    renamed? Of two that differ in case alone, the exact one stays."""
    return _rename(document, _shape(kind))


@functools.cache
def _shape(kind: Any) -> _Shape:
    return _of(inspect.type_info(kind), {})


def _of(info: inspect.Type, seen: dict[Any, _Shape]) -> _Shape:
    if isinstance(info, inspect.UnionType):
        found = [_of(part, seen) for part in info.types if not isinstance(part, inspect.NoneType)]
        return next((shape for shape in found if shape != _Shape()), _Shape())
    if isinstance(info, inspect.StructType):
        if info.cls not in seen:
            members: _Members = {}
            seen[info.cls] = _Shape(members)  # before its fields: a struct may have itself in one
            for field in info.fields:
                members[field.encode_name.lower()] = (field.encode_name, _of(field.type, seen))
        return seen[info.cls]
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return _Shape(element=_of(info.item_type, seen))
    if isinstance(info, inspect.DictType):
        return _Shape(value=_of(info.value_type, seen))
    return _Shape()


def _rename(document: Any, shape: _Shape) -> bool:
    renamed = False
    if isinstance(document, dict):
        if shape.members is not None:
            for key in list(document):
                known = shape.members.get(key.lower())
                if known is None:
                    continue
                name, below = known
                if key != name:
                    value = document.pop(key)
                    document.setdefault(name, value)
                    renamed = True
                renamed |= _rename(document[name], below)
        elif shape.value is not None:
            for value in document.values():
                renamed |= _rename(value, shape.value)
    elif isinstance(document, list) and shape.element is not None:
        for item in document:
            renamed |= _rename(item, shape.element)
    return renamed
