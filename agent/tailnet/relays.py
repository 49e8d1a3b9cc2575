"""The relay connections of one node: home always, others while they are used (tailnet.md §5.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from agent.clock import Clock, wait_for
from agent.tailnet.derp_client import DerpClient
from agent.tailnet.derp_dial import DialOptions, Tls
from agent.tailnet.derp_map import DerpMap, Region

IDLE: Final = 60.0
"""Seconds without a write after which a connection to a region that is not home is closed."""
CHECK: Final = 15.0
MAX_HEARD: Final = 16_384
"""Senders of which is known at which relay they are: anybody may send, under as many keys as they like."""


class RelayOwner(Protocol):
    """What a node does with what comes from its relays."""

    def receive_relay(self, region: int, packets: Iterable[tuple[bytes, bytes]]) -> None:
        """Datagrams, each with the node key of its sender."""


class Relays:
    """`set_map` and `set_home` say which relays there are; `send` opens what it needs."""

    def __init__(
        self,
        private_key: bytes,
        owner: RelayOwner,
        clock: Clock,
        *,
        options: DialOptions,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._private_key = private_key
        self._owner = owner
        self._clock = clock
        self._options = options
        self._changed = changed
        self._tls = Tls(options.roots)
        self._map = DerpMap()
        self._home = 0
        self._clients: dict[int, tuple[DerpClient, asyncio.Task[None]]] = {}
        self._heard: dict[bytes, int] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self.dropped = 0
        """Datagrams for which there was no relay, or no room."""

    @property
    def home(self) -> int:
        """The home region; 0 while there is none."""
        return self._home

    @property
    def forced_websockets(self) -> dict[int, str]:
        """Regions that are only reached over WebSockets, with the reason."""
        return {
            number: client.forced_websocket for number, (client, _) in self._clients.items() if client.forced_websocket
        }

    def connected(self, region: int) -> bool:
        """Whether there is a connection to that region now."""
        entry = self._clients.get(region)
        return entry is not None and entry[0].connected

    async def home_connected(self, limit: float) -> None:
        """Wait until the home region is connected, for at most `limit` seconds."""
        entry = self._clients.get(self._home)
        if entry is not None:
            with contextlib.suppress(TimeoutError):
                await wait_for(self._clock, entry[0].wait_connected(), limit)

    async def verify(self) -> None:
        """See which connections are still good; those that are not are made anew."""
        await asyncio.gather(*(client.verify() for client, _ in self._clients.values()))

    def set_map(self, derp_map: DerpMap) -> None:
        """Other relays: connections to regions that changed or went are closed."""
        for number, (client, _) in list(self._clients.items()):
            if derp_map.regions.get(number) != client.region:
                self._close(number)
        self._map = derp_map
        if self._home and self._home not in derp_map.regions:
            self._home = 0
        elif self._home:
            self._open(self._home)

    def set_force_websockets(self, force: bool) -> None:
        """Reach relays over WebSockets only, or by upgrade again; connections are made anew, with the same key."""
        if force == self._options.force_websockets:
            return
        self._options = replace(self._options, force_websockets=force)
        for number in list(self._clients):
            self._close(number)
        self._open(self._home)

    def set_home(self, region: int) -> None:
        """This region is the node's home from now on: it is connected at once and stays so."""
        if region == self._home:
            return
        self._home = region
        for number, (client, _) in self._clients.items():
            client.set_home(number == region)
        if region:
            self._open(region)

    def send(self, region: int, peer: bytes, datagrams: Sequence[bytes]) -> None:
        """To a peer whose home is `region`; through a relay on which it was heard if there is no connection there."""
        entry = self._clients.get(region)
        if entry is None or not entry[0].connected:
            heard = self._clients.get(self._heard.get(peer, 0))
            entry = heard if heard is not None and heard[0].connected else entry or self._open(region)
        if entry is None:
            self.dropped += len(datagrams)
            return
        self.dropped += len(datagrams) - entry[0].send(peer, datagrams)

    async def aclose(self) -> None:
        """Close every connection; none is opened from then on, whatever a stream that ends late wants to send."""
        self._closed = True
        tasks = [task for _, task in self._clients.values()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._clients.clear()

    # ---- called by the clients

    def derp_packets(self, region: int, packets: list[tuple[bytes, bytes]]) -> None:
        heard = self._heard
        for key, _ in packets:
            if key not in heard and len(heard) >= MAX_HEARD:
                del heard[next(iter(heard))]
            heard[key] = region
        self._owner.receive_relay(region, packets)

    def derp_peer_gone(self, region: int, key: bytes) -> None:
        if self._heard.get(key) == region:
            del self._heard[key]

    def derp_changed(self, region: int) -> None:
        if not self.connected(region):
            self._heard = {key: where for key, where in self._heard.items() if where != region}
        self._changed()

    # ---- connections

    def _open(self, number: int) -> tuple[DerpClient, asyncio.Task[None]] | None:
        if (entry := self._clients.get(number)) is not None:
            return entry
        region: Region | None = self._map.regions.get(number)
        if self._closed or region is None or not region.relays:
            return None
        home = number == self._home
        client = DerpClient(
            region, self._private_key, self, self._clock, home=home, tls=self._tls, options=self._options
        )
        task = asyncio.create_task(client.run(), name=f"relay region {number}")
        self._clients[number] = client, task
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep(), name="relay sweeper")
        return client, task

    def _close(self, number: int) -> None:
        _, task = self._clients.pop(number)
        task.cancel()

    async def _sweep(self) -> None:
        while True:
            await self._clock.sleep(CHECK)
            now = self._clock.now()
            for number, (client, _) in list(self._clients.items()):
                if number != self._home and now - client.last_write >= IDLE:
                    self._close(number)
