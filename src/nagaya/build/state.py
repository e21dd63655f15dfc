"""An image between two steps: its configuration document and its layers. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from nagaya.image import making
from nagaya.image.building import Base, Layer
from nagaya.image.making import Recipe
from nagaya.oci import digest as digests
from nagaya.oci import manifest as manifests
from nagaya.oci.platform import Platform

_encode = msgspec.json.Encoder(order="sorted").encode


class State:
    """What a step stands on, and what it makes. Never changed."""

    def __init__(
        self,
        document: Mapping[str, Any],
        layers: Sequence[Layer] = (),
        media_type: str = manifests.OCI_MANIFEST,
        author: str = "",
    ) -> None:
        self.document = document
        self.layers = tuple(layers)
        self.media_type = media_type
        self.author = author

    @classmethod
    def of(cls, base: Base) -> State:
        """What FROM begins with."""
        return cls(base.document, base.layers, base.media_type)

    @classmethod
    def scratch(cls, platform: Platform) -> State:
        """What FROM scratch begins with."""
        document = {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            document["variant"] = platform.variant
        return cls(document)

    @property
    def config(self) -> Mapping[str, Any]:
        """What containers get of it."""
        found = self.document.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Its layers, bottom first."""
        return tuple(layer.diff_id for layer in self.layers)

    @cached_property
    def encoded(self) -> bytes:
        """The document as it is stored."""
        return msgspec.json.encode(self.document)

    @cached_property
    def id(self) -> str:
        """The image's id."""
        return digests.of(self.encoded)

    def base(self) -> Base:
        """As the image room wants it."""
        return Base(self.id, self.document, self.layers, self.media_type)

    def with_config(self, config: Mapping[str, Any]) -> State:
        """The same with another configuration, and no new line in its history."""
        return State({**self.document, "config": dict(config)}, self.layers, self.media_type, self.author)

    def after(
        self,
        config: Mapping[str, Any],
        created: str,
        created_by: str,
        layer: Layer | None = None,
        *,
        author: str | None = None,
        comment: str = "",
    ) -> State:
        """What a step has made of it."""
        author = self.author if author is None else author
        recipe = Recipe(config, created, created_by, author, comment)
        document = making.document(self.document, recipe, layer.diff_id if layer else "")
        layers = (*self.layers, layer) if layer else self.layers
        return State(document, layers, self.media_type, author)


def key(*parts: object) -> str:
    """The name of a step in the cache: of all that went into it."""
    return hashlib.sha256(_encode(parts)).hexdigest()
