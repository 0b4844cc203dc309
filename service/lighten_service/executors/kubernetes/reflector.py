"""Follows the objects of one kind: a list, then a watch that goes on where it was."""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from lighten_service.executors.kubernetes.api import Api, ApiError, ApiUnreachable
from lighten_service.executors.kubernetes.availability import Availability, Backoff
from lighten_service.telemetry.kubernetes_metrics import KubernetesMetrics

_log = logging.getLogger(__name__)

_PAGE = 200
# The server ends a watch after about a minute, so a connection that died is noticed.
_WATCH_SECONDS = (45, 60)
_SILENCE_MARGIN = 10.0
_FORBIDDEN = 403


class Sink(Protocol):
    """Takes what a reflector sees. Called in order, never at the same time."""

    def begin_list(self) -> None:
        """A list begins: what is put from now on is newer than it."""

    def put(self, item: Mapping[str, Any]) -> None:
        """An object is there, or changed."""

    def gone(self, item: Mapping[str, Any]) -> None:
        """An object was deleted; this was its last state."""

    def end_list(self) -> None:
        """The list is whole: whatever was not put since it began is gone."""


@dataclass(frozen=True, slots=True)
class Collection:
    """What to follow: a resource of the namespace, and its selectors as query parameters."""

    resource: str
    selector: Mapping[str, str]
    # Path of an API group that is not built in.
    group: str = ""
    # Whether its trouble is the API server's: launches pause then.
    vital: bool = True


class Reflector:
    """``run`` never ends by itself: it lists and watches again after every failure."""

    def __init__(
        self,
        api: Api,
        collection: Collection,
        sink: Sink,
        availability: Availability,
        metrics: KubernetesMetrics,
    ) -> None:
        self._api = api
        self._collection = collection
        self._sink = sink
        self._availability = availability
        self._metrics = metrics
        self._backoff = Backoff()
        # Where the watch is; empty: list first.
        self._version = ""
        # Set once a list was whole.
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Keep the sink up to date."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                # The server ended it, in silence where nothing happened: not all send bookmarks.
                self._heard()
                self._restarted("timeout")
            except (ApiError, ApiUnreachable) as error:
                await self._recover(error)
            except Exception:
                # An object like none before: a server that sees nothing more would be worse.
                _log.exception("following %s failed", self._collection.resource)
                self._version = ""
                await asyncio.sleep(self._backoff.next())

    async def _list(self) -> None:
        """Read everything, a page at a time."""
        self._sink.begin_list()
        query = {**self._collection.selector, "limit": str(_PAGE)}
        while True:
            page = await self._api.list(
                self._collection.resource, group=self._collection.group, **query
            )
            for item in page.get("items") or ():
                self._sink.put(item)
            more = page["metadata"].get("continue")
            if not more:
                break
            query["continue"] = more
        self._sink.end_list()
        self._heard()
        self.synced.set()
        self._version = page["metadata"]["resourceVersion"]

    async def _watch(self) -> None:
        """Apply changes until the server ends the watch."""
        seconds = random.randint(*_WATCH_SECONDS)
        events = self._api.watch(
            self._collection.resource,
            group=self._collection.group,
            silence=seconds + _SILENCE_MARGIN,
            **self._collection.selector,
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            timeoutSeconds=str(seconds),
        )
        async with aclosing(events):
            async for event in events:
                item = event["object"]
                if event["type"] == "DELETED":
                    self._sink.gone(item)
                elif event["type"] != "BOOKMARK":
                    self._sink.put(item)
                self._version = item["metadata"]["resourceVersion"]
                self._heard()

    async def _recover(self, error: ApiError | ApiUnreachable) -> None:
        """Wait as long as it needs."""
        what = self._collection.resource
        if isinstance(error, ApiError) and error.gone:
            self._version = ""
            self._restarted("gone")
        elif isinstance(error, ApiError) and not error.passing:
            # A right that is missing, or a kind that is: no fault of the server.
            _log.error("cannot follow %s: %s", what, error)
            self._restarted("forbidden" if error.code == _FORBIDDEN else "refused")
            self._version = ""
        else:
            if self._collection.vital:
                self._availability.failed(error)
            self._restarted("unavailable")
        await asyncio.sleep(self._backoff.next())

    def _heard(self) -> None:
        self._backoff.reset()
        if self._collection.vital:
            self._availability.succeeded()
        self._metrics.watch_heard(self._collection.resource)

    def _restarted(self, reason: str) -> None:
        self._metrics.watch_restarted(self._collection.resource, reason)
