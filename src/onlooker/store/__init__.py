"""The embedded store: what the page and the terminal views look at when there is no backend.

Receives finished batches on the capture thread (`Intake`), writes them with a thread of its own (`Writer`) into one
SQLite file, and answers questions (`Reader`).  May drop spans that are not interesting (by design, see `tail`), and
whole batches when the writer cannot keep up (counted).
"""

from onlooker.store.reader import Reader, SpanFilter
from onlooker.store.schema import MEMORY
from onlooker.store.store import Store, StoreOptions

__all__ = ["MEMORY", "Reader", "SpanFilter", "Store", "StoreOptions"]
