"""Statistics of pods and containers."""

from __future__ import annotations

from nagaya.api.cri.context import Lister, Unary

UNARY: dict[str, Unary] = {}
LISTERS: dict[str, Lister] = {}
