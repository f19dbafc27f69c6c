"""The database of studies, as the catalog hands it to the searches."""

from __future__ import annotations

import os
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from adaptive_opt.search.storage import Storage

__all__ = ["URL_VARIABLE", "StudyStorageDataset"]

URL_VARIABLE = "ADAPTIVE_OPT_TUNING_STORAGE"


class StudyStorageDataset(AbstractDataset[Any, Storage]):
    """Where studies are kept: SQLite in the project, or a server that many hosts share.

    Args:
        url: of SQLAlchemy, without secrets.
        credentials: ``url``: one with secrets, from ``conf/local/credentials.yml``; the
            environment variable ``ADAPTIVE_OPT_TUNING_STORAGE`` goes before both.
        metadata: for Kedro's plugins.
    """

    def __init__(
        self,
        *,
        url: str,
        credentials: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._storage = Storage(
            os.environ.get(URL_VARIABLE) or (credentials or {}).get("url") or url
        )
        self.metadata = metadata

    def load(self) -> Storage:
        """The database, not yet opened."""
        return self._storage

    def save(self, data: Any) -> None:
        """Refused: the searches write into it."""
        del data
        raise DatasetError("the studies are written by the searches, not through the catalog")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {"storage": self._storage.name}
