"""The adapters that replicas list: looked up for each draw, again after an error, and loaded again if lost."""

from __future__ import annotations

import re
from functools import partial

import structlog

from gateway.backend.flavours import Catalogue
from gateway.backend.kind import Kind
from gateway.backend.replicas import Replica
from gateway.errors import AdapterMissing, GatewayError
from gateway.single_flight import KeyedTasks

# A name in a policy document becomes a path on the server.
_ADAPTER_NAME = re.compile(r"rft-[0-9-]{8,10}-[0-9a-f]{8,64}")
_LOAD_TIMEOUT_S = 60.0

log = structlog.get_logger()


class Adapters:
    """Looks up adapters in the replicas' lists; ``folder`` is where the servers see them: empty loads none again."""

    def __init__(self, kind: Kind, folder: str) -> None:
        self._kind = kind
        self._folder = folder.rstrip("/")
        self._loading: KeyedTasks[str] = KeyedTasks()

    async def lists(self, replica: Replica, adapter: str | None) -> Catalogue:
        """Return what the replica serves; its list is read again if the adapter was not in it before.

        Raises:
            AdapterMissing: It does not list the adapter.
            GatewayError: The list could not be read.
        """
        flavour = self._kind.flavour
        if flavour.catalogue_path is None or (adapter is None and flavour.base_model):
            return Catalogue(flavour.base_model)
        known = replica.catalogue
        if known is None or (adapter is not None and adapter not in known.adapters):
            known = await replica.list_models(flavour)
            if adapter is not None:
                missing = adapter not in known.adapters
                replica.set_missing(adapter, missing)
                if missing:
                    self._load_again(replica, adapter)
                    raise AdapterMissing(f"the backend has not loaded the adapter {adapter}")
        return known

    async def check_after_error(self, replica: Replica, adapter: str | None) -> None:
        """Ask the replica for the adapter again; raise ``AdapterMissing`` if it has lost it."""
        if adapter is None or self._kind.flavour.catalogue_path is None:
            return
        replica.catalogue = None
        try:
            await self.lists(replica, adapter)
        except AdapterMissing:
            raise
        except GatewayError:
            return  # the draw's own error says more

    async def aclose(self) -> None:
        await self._loading.aclose()

    def _load_again(self, replica: Replica, adapter: str) -> None:
        path, root_url = self._kind.flavour.load_adapter_path, replica.server.root_url
        if path is not None and self._folder and _ADAPTER_NAME.fullmatch(adapter) is not None:
            self._loading.start(root_url, partial(self._load, replica, adapter, path))

    async def _load(self, replica: Replica, adapter: str, path: str) -> None:
        body = {"lora_name": adapter, "lora_path": f"{self._folder}/{adapter}"}
        try:
            response = await replica.server.call(path, body, timeout_s=_LOAD_TIMEOUT_S)
        except GatewayError as error:
            log.error("adapter_not_loaded", replica=replica.name, adapter=adapter, error=type(error).__name__)
            return
        if response.status != 200:
            log.error("adapter_not_loaded", replica=replica.name, adapter=adapter, status=response.status)
            return
        log.info("adapter_loaded_again", replica=replica.name, adapter=adapter)
        replica.catalogue = None
        replica.set_missing(adapter, missing=False)
