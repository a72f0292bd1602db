"""The durable store of tenants, databases, collections, shards and moves: the only truth."""

from router.catalog.codec import Metadata, NewCollection
from router.catalog.maintenance import backup, check, outdated
from router.catalog.move_rows import MoveRow
from router.catalog.move_store import MoveStore
from router.catalog.rebuild import NodeHoldings, RebuiltCatalog, behind, rebuild, write_rebuilt
from router.catalog.schema import DEFAULT_DATABASE, DEFAULT_DATABASE_ID, DEFAULT_TENANT
from router.catalog.sqlite_catalog import Catalog

__all__ = [
    "DEFAULT_DATABASE",
    "DEFAULT_DATABASE_ID",
    "DEFAULT_TENANT",
    "Catalog",
    "Metadata",
    "MoveRow",
    "MoveStore",
    "NewCollection",
    "NodeHoldings",
    "RebuiltCatalog",
    "backup",
    "behind",
    "check",
    "outdated",
    "rebuild",
    "write_rebuilt",
]
