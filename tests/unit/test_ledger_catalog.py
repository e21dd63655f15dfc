"""The ledger's catalog keeps the image room's contract, over a reopening too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_contract import CatalogContract

from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.ledger import Ledger


class TestLedgerCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Iterator[LedgerCatalog]:
        ledger = Ledger(str(tmp_path / "ledger.db"))
        yield LedgerCatalog(ledger)
        ledger.close()
