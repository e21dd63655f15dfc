"""The catalog in memory obeys the contract, so that tests built on it mean something."""

from __future__ import annotations

import pytest
from catalog_contract import CatalogContract
from memory_catalog import MemoryCatalog


class TestMemoryCatalog(CatalogContract):
    @pytest.fixture
    def catalog(self) -> MemoryCatalog:
        return MemoryCatalog()
