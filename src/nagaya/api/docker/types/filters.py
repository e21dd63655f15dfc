"""The `filters` query parameter: JSON of {"name": {"value": true}} or, older, {"name": ["value"]}."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec

from nagaya.errors import InvalidArgument


class Filters:
    """Parsed filters: all names must match, of a name's values any one."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self._values = values

    @classmethod
    def parse(cls, text: str) -> Filters:
        """Raises InvalidArgument when the text is neither form."""
        if not text.strip():
            return cls({})
        try:
            document: dict[str, dict[str, bool] | list[str] | None] = msgspec.json.decode(
                text, type=dict[str, dict[str, bool] | list[str] | None]
            )
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidArgument(f"invalid filter: {error}") from None
        values: dict[str, tuple[str, ...]] = {}
        for name, given in document.items():
            if isinstance(given, dict):
                values[name] = tuple(value for value, on in given.items() if on)
            elif given:
                values[name] = tuple(given)
        return cls({name: chosen for name, chosen in values.items() if chosen})

    def check(self, known: frozenset[str]) -> None:
        """Raises InvalidArgument for a filter this list does not know."""
        for name in self._values:
            if name not in known:
                raise InvalidArgument(f"invalid filter '{name}'", subject=name)

    def values(self, name: str) -> tuple[str, ...]:
        """The values of a filter, () when it is not given."""
        return self._values.get(name, ())

    def boolean(self, name: str) -> bool | None:
        """A filter that is true or false; None when not given. Raises InvalidArgument."""
        values = self.values(name)
        if not values:
            return None
        if len(values) == 1 and values[0] in ("1", "true", "True", "TRUE", "t"):
            return True
        if len(values) == 1 and values[0] in ("0", "false", "False", "FALSE", "f"):
            return False
        raise InvalidArgument(f"invalid filter '{name}=[{' '.join(values)}]'", subject=name)

    def matches_any(self, name: str, test: Callable[[str], object]) -> bool:
        """True when the filter is absent or one of its values passes."""
        values = self.values(name)
        return not values or any(test(value) for value in values)

    def matches_name(self, name: str, subject: str) -> bool:
        """Docker's name filter: equal, or the value found in the name as a regular expression, with and
        without the leading slash."""

        def test(value: str) -> object:
            if value == subject or value.removeprefix("/") == subject:
                return True
            if len(value) > 256:  # bounds what a regular expression may cost
                return False
            try:
                return re.search(value, "/" + subject) or re.search(value, subject)
            except re.error:
                return value in subject

        return self.matches_any(name, test)

    def lacks_labels(self, labels: Mapping[str, str]) -> bool:
        """No "label!" filter may hold."""
        for value in self.values("label!"):
            key, equals, unwanted = value.partition("=")
            if key in labels and (not equals or labels[key] == unwanted):
                return False
        return True

    def matches_labels(self, labels: Mapping[str, str], name: str = "label") -> bool:
        """Every label filter must hold: "key" or "key=value"."""
        for value in self.values(name):
            key, equals, wanted = value.partition("=")
            if key not in labels or (equals and labels[key] != wanted):
                return False
        return True
