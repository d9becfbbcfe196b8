"""Names that files written for CarbonTube import. Nodes keep jobs themselves, so these do nothing."""

from __future__ import annotations

from typing import Any


class EphemeralStorageBackend:
    """Takes whatever it is given."""

    def __init__(self, *_arguments: Any, **_settings: Any) -> None:
        pass


class RedisStorageBackend(EphemeralStorageBackend):
    """Takes whatever it is given."""
