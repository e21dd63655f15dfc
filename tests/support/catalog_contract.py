"""What every `nagaya.image.catalog.Catalog` must do. Subclass it and give the fixture `catalog`:

from catalog_contract import CatalogContract

class TestLedgerCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self, tmp_path): ...
"""

from __future__ import annotations

import threading

import pytest

from nagaya.errors import NotFound
from nagaya.image.catalog import Catalog, ImageRow, LayerRow, NameRow, SnapshotRow, StepRow


def _digest(character: str) -> str:
    return "sha256:" + character * 64


A, B, C = _digest("a"), _digest("b"), _digest("c")
LATEST = "docker.io/library/busybox:latest"
PINNED = f"docker.io/library/busybox@{C}"


def _image(image_id: str = A) -> ImageRow:
    return ImageRow(image_id, manifest=B, layers=(C, A), blobs=(A, B, C), stored=1_700_000_000_123_456_789)


class CatalogContract:
    def test_starts_empty(self, catalog: Catalog) -> None:
        assert catalog.images() == []
        assert catalog.names() == []
        assert catalog.layers() == []
        assert catalog.snapshots() == []
        assert catalog.image(A) is None
        assert catalog.name(LATEST) is None
        assert catalog.layer(A) is None
        assert catalog.snapshot("f" * 64) is None

    def test_an_image_comes_back_as_it_was_put(self, catalog: Catalog) -> None:
        catalog.put_image(_image(), [NameRow(LATEST, A), NameRow(PINNED, A)])
        assert catalog.image(A) == _image()
        assert catalog.images() == [_image()]
        assert catalog.name(LATEST) == NameRow(LATEST, A)
        assert catalog.names() == [NameRow(LATEST, A), NameRow(PINNED, A)]

    def test_an_image_without_layers(self, catalog: Catalog) -> None:
        row = ImageRow(A, manifest=B, layers=(), blobs=(A, B), stored=0)
        catalog.put_image(row)
        assert catalog.image(A) == row

    def test_putting_again_replaces_and_keeps_names(self, catalog: Catalog) -> None:
        catalog.put_image(_image(), [NameRow(LATEST, A)])
        again = ImageRow(A, manifest=C, layers=(C, A), blobs=(A, B, C), stored=2)
        catalog.put_image(again)
        assert catalog.images() == [again]
        assert catalog.names() == [NameRow(LATEST, A)]

    def test_a_name_moves(self, catalog: Catalog) -> None:
        catalog.put_image(_image(A), [NameRow(LATEST, A)])
        catalog.put_image(_image(B), [NameRow(LATEST, B)])
        assert catalog.name(LATEST) == NameRow(LATEST, B)
        assert [i.id for i in catalog.images()] == [A, B]
        catalog.put_name(NameRow(LATEST, A))
        assert catalog.names() == [NameRow(LATEST, A)]

    def test_a_name_needs_its_image(self, catalog: Catalog) -> None:
        with pytest.raises(NotFound):
            catalog.put_name(NameRow(LATEST, A))
        assert catalog.names() == []

    def test_deleting_an_image_deletes_its_names_only(self, catalog: Catalog) -> None:
        catalog.put_image(_image(A), [NameRow(LATEST, A), NameRow(PINNED, A)])
        catalog.put_image(_image(B), [NameRow("localhost/x:y", B)])
        catalog.delete_image(A)
        catalog.delete_image(A)
        assert [i.id for i in catalog.images()] == [B]
        assert catalog.names() == [NameRow("localhost/x:y", B)]

    def test_deleting_names_keeps_the_image(self, catalog: Catalog) -> None:
        catalog.put_image(_image(), [NameRow(LATEST, A), NameRow(PINNED, A)])
        catalog.delete_names([LATEST, "docker.io/library/never:seen"])
        assert catalog.names() == [NameRow(PINNED, A)]
        catalog.delete_names([])
        assert catalog.image(A) == _image()

    def test_layers(self, catalog: Catalog) -> None:
        first, second = LayerRow(A, "0a1b2c3d", 2**40, 20_500), LayerRow(B, "ffffffff", 0, 0)
        catalog.put_layer(second)
        catalog.put_layer(first)
        assert catalog.layers() == [first, second]
        assert catalog.layer(B) == second
        moved = LayerRow(B, "11111111", 5, 1)
        catalog.put_layer(moved)
        assert catalog.layer(B) == moved
        catalog.delete_layer(A)
        catalog.delete_layer(A)
        assert catalog.layers() == [moved]

    def test_a_layer_row_outlives_its_image(self, catalog: Catalog) -> None:
        catalog.put_layer(LayerRow(C, "0a1b2c3d", 1, 1))
        catalog.put_image(_image())
        catalog.delete_image(A)
        assert catalog.layer(C) is not None

    def test_snapshots(self, catalog: Catalog) -> None:
        one, two = SnapshotRow("1" * 64, (A, B, A)), SnapshotRow("2" * 64, ())
        catalog.put_snapshot(two)
        catalog.put_snapshot(one)
        assert catalog.snapshots() == [one, two]
        assert catalog.snapshot("1" * 64) == one
        catalog.delete_snapshot("1" * 64)
        catalog.delete_snapshot("1" * 64)
        assert catalog.snapshots() == [two]

    def test_many_threads(self, catalog: Catalog) -> None:
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for i in range(10):
                    catalog.put_layer(LayerRow(f"sha256:{number:032x}{i:032x}", f"{number:04x}{i:04x}", i, i))
                    catalog.put_image(_image(A), [NameRow(f"localhost/x:{number}", A)])
                    catalog.names()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(catalog.layers()) == 40
        assert len(catalog.names()) == 4

    def test_a_build_is_put_as_a_whole_and_its_steps_go_again(self, catalog: Catalog) -> None:
        first = StepRow("aa", "", "2026-01-01T00:00:00Z", "RUN true", made=1, used=1)
        second = StepRow("bb", "aa", "2026-01-01T00:00:01Z", "COPY", 2, 2, 0, diff_id=A, blob=B, size=7)
        layer = LayerRow(A, "0a1b2c3d", size=3, entries=1)
        assert catalog.steps() == [] and catalog.step("aa") is None
        catalog.put_build([layer], [second, first], _image(C), [NameRow(LATEST, C)])
        assert catalog.steps() == [first, second] and catalog.step("bb") == second
        assert catalog.layer(A) == layer and catalog.image(C) == _image(C)
        assert catalog.name(LATEST) == NameRow(LATEST, C)
        catalog.put_build([], [])
        catalog.delete_steps(["bb", "cc"])
        assert catalog.steps() == [first]
        assert catalog.layer(A) == layer

    def test_using_a_step_does_not_bring_it_back(self, catalog: Catalog) -> None:
        first = StepRow("aa", "", "2026-01-01T00:00:00Z", "RUN true", made=1, used=1)
        catalog.put_build([], [first])
        again = StepRow("aa", "", "2026-01-01T00:00:00Z", "RUN true", made=1, used=9, uses=1)
        gone = StepRow("bb", "", "2026-01-01T00:00:00Z", "RUN false", made=1, used=9, uses=1)
        catalog.use_steps([again, gone])
        assert catalog.steps() == [again]
