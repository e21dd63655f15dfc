"""The filters of every prune: until, label, label!."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nagaya.api.docker.types.filters import Filters
from nagaya.api.docker.types.times import parse_timestamp
from nagaya.errors import InvalidArgument

PRUNE_FILTERS = frozenset(("until", "label", "label!"))


def criterion(filters: Filters, now_ns: int) -> Callable[[int, Mapping[str, str]], bool]:
    """Is something of that age (nanoseconds since the epoch) and these labels meant? Raises
    InvalidArgument."""
    moments = filters.values("until")
    if len(moments) > 1:
        raise InvalidArgument("more than one until filter specified", subject="until")
    until = parse_timestamp(moments[0], "until", now_ns) if moments else None
    unwanted = filters.values("label!")

    def wanted(created: int, labels: Mapping[str, str]) -> bool:
        return (
            (until is None or created <= until)
            and filters.matches_labels(labels)
            and not (unwanted and filters.matches_labels(labels, "label!"))
        )

    return wanted
