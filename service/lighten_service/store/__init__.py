"""Adapters of the JobStore port."""

from lighten_service.store.opening import open_store

__all__ = ["open_store"]
