"""Where the API server is and who we are there: kubeconfig, or the service account of a pod."""

import asyncio
import logging
import os
from pathlib import Path
from time import monotonic

import yaml
from kubernetes_asyncio.client.configuration import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    load_kube_config,
    refresh_token,
)
from kubernetes_asyncio.config.kube_config import KubeConfigLoader

from lighten_service.jobs.errors import FailedPrecondition

_log = logging.getLogger(__name__)

# Watches hold three of them.
_CONNECTIONS = 32
_RENEW_SECONDS = 30.0
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


class Connection:
    """Credentials and a pool of connections. Tokens that expire are renewed."""

    def __init__(self, kubeconfig: Path | None, context: str) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._configuration = Configuration()
        self._rest: RESTClientObject | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._opened_at = 0.0

    async def open(self) -> None:
        """Read the credentials. Again: read what is there now.

        Raises:
            FailedPrecondition: KUBERNETES_CONFIG_INVALID, there are none or they are broken.
        """
        configuration = Configuration()
        configuration.connection_pool_maxsize = _CONNECTIONS
        try:
            loader = await self._load(configuration)
            rest = RESTClientObject(configuration)
        except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError) as error:
            raise FailedPrecondition(
                "KUBERNETES_CONFIG_INVALID",
                f"the credentials for the Kubernetes API ({self._origin}) cannot be used: {error}",
                field="kubernetes.kubeconfig",
            ) from error
        before = self._rest, self._refreshing
        self._configuration, self._rest = configuration, rest
        self._opened_at = monotonic()
        self._refreshing = None
        if loader is not None:
            renewing = refresh_token(loader, configuration)
            self._refreshing = asyncio.create_task(renewing, name="kubernetes-token")
        await _close(*before)

    async def renew(self) -> None:
        """The server took our credentials for wrong: read them again, for a file may be new."""
        if monotonic() - self._opened_at < _RENEW_SECONDS:
            return
        try:
            await self.open()
        except FailedPrecondition as error:
            _log.error("%s", error.message)
            self._opened_at = monotonic()

    @property
    def host(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host)

    @property
    def rest(self) -> RESTClientObject:
        if self._rest is None:
            raise RuntimeError("the connection is not open")
        return self._rest

    async def headers(self) -> dict[str, str]:
        """Return who we are, as headers of a request."""
        settings = await self._configuration.auth_settings()
        value = settings.get("BearerToken", {}).get("value")
        return {"Authorization": str(value)} if value else {}

    async def close(self) -> None:
        before = self._rest, self._refreshing
        self._rest = self._refreshing = None
        await _close(*before)

    @property
    def _origin(self) -> str:
        if self._kubeconfig is not None:
            return str(self._kubeconfig)
        return "service account" if self._in_cluster else "kubectl's default file"

    @property
    def _in_cluster(self) -> bool:
        return self._kubeconfig is None and _IN_CLUSTER in os.environ

    async def _load(self, configuration: Configuration) -> KubeConfigLoader | None:
        if self._in_cluster:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return None
        return await load_kube_config(
            config_file=str(self._kubeconfig) if self._kubeconfig else None,
            context=self._context or None,
            client_configuration=configuration,
            persist_config=False,
        )


async def _close(rest: RESTClientObject | None, refreshing: asyncio.Task[None] | None) -> None:
    if refreshing is not None:
        refreshing.cancel()
        await asyncio.gather(refreshing, return_exceptions=True)
    if rest is not None:
        # Requests under way fail as if the server had gone.
        await rest.close()
