"""Which relays agents and clients are told of: the embedded one, or those of the owner's file (tailnet.md §5.8)."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import structlog
import yaml
from yarl import URL

from agent.api.proto import tailnet_pb2 as pb
from agent.clock import Clock
from agent.server.events import Events
from agent.tailnet.derp_map import NO_STUN, DerpMap, DerpMapError, Node, Region, from_owner, to_message

RELAY_REGION: Final = 999
TOPIC: Final = "derp-map"
"""Told within this server when the map changed; replicas look at their own files."""
CHECK_PERIOD: Final = 5.0

log = structlog.get_logger("agent.server.derp_map")


class DerpMapFileError(Exception):
    """The owner's file cannot be used; the text names it and every mistake in it."""


class DerpOptions(NamedTuple):
    """What the operator decides about the network."""

    file: Path | None = None
    """The whole map, as YAML or JSON; None: only the embedded relay."""
    stun_port: int | None = None
    """UDP port at the host of the access URL where the embedded relay answers STUN."""
    disable_direct: bool = False
    force_websockets: bool = False


class DerpMaps:
    """The map as it is now. A file is read again when it changes; one with mistakes leaves the map as it was."""

    def __init__(self, access_url: str, options: DerpOptions, events: Events, clock: Clock) -> None:
        self.options = options
        self._access_url, self._events, self._clock = URL(access_url), events, clock
        self._stamp: tuple[int, ...] = ()
        self._set(embedded(self._access_url, options.stun_port))

    @property
    def current(self) -> DerpMap:
        return self._current

    @property
    def message(self) -> pb.DERPMap:
        """The same, for manifests and streams. Not to be changed."""
        return self._message

    async def load(self) -> None:
        """Read the file, if there is one. Raises `DerpMapFileError`."""
        if self.options.file is not None:
            self._stamp = await asyncio.to_thread(_stamp, self.options.file)
            self._set(await asyncio.to_thread(_read, self.options.file))

    async def run(self) -> None:
        """Look after the file until cancelled."""
        file = self.options.file
        while file is not None:
            await self._clock.sleep(CHECK_PERIOD)
            stamp = await asyncio.to_thread(_stamp, file)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self._set(await asyncio.to_thread(_read, file))
            except DerpMapFileError as error:
                log.warning("the DERP map stays as it was", error=str(error))

    def _set(self, derp_map: DerpMap) -> None:
        derp_map = derp_map.rewritten(self._access_url)
        if self.options.disable_direct:
            derp_map = without_stun(derp_map)
        self._current, self._message = derp_map, to_message(derp_map)
        self._events.deliver(TOPIC)


def embedded(access_url: URL, stun_port: int | None) -> DerpMap:
    """One region: the relay that this server embeds, reached at the access URL."""
    node = Node(f"{RELAY_REGION}b", RELAY_REGION, access_url.host or "", stun_port=stun_port or NO_STUN)
    region = Region(RELAY_REGION, "embedded", "Embedded Relay", embedded_relay=True, nodes=(node,))
    return DerpMap(MappingProxyType({RELAY_REGION: region})).rewritten(access_url)


def without_stun(derp_map: DerpMap) -> DerpMap:
    """For a deployment without direct connections: nobody is to look for its public address."""
    regions = {
        number: replace(region, nodes=tuple(replace(node, stun_port=NO_STUN) for node in region.relays))
        for number, region in derp_map.regions.items()
        if region.relays
    }
    scores = {number: score for number, score in derp_map.scores.items() if number in regions}
    return replace(derp_map, regions=MappingProxyType(regions), scores=MappingProxyType(scores))


def parse(text: str) -> DerpMap:
    """An owner's map in YAML, of which JSON is a part. Raises `DerpMapError`."""
    try:
        return from_owner(json.dumps(yaml.safe_load(text)))
    except yaml.YAMLError as error:
        raise DerpMapError([f"it is neither YAML nor JSON: {error}"]) from error
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, DerpMapError):
            raise
        raise DerpMapError([f"it has something that JSON has not: {error}"]) from error


def _read(file: Path) -> DerpMap:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DerpMapFileError(f"cannot read the DERP map {file}: {reason}") from error
    except UnicodeDecodeError as error:
        raise DerpMapFileError(f"the DERP map {file} is not UTF-8: {error}") from error
    except DerpMapError as error:
        mistakes = "\n".join(f"  {mistake}" for mistake in error.mistakes)
        raise DerpMapFileError(f"the DERP map {file} cannot be used:\n{mistakes}") from error


def _stamp(file: Path) -> tuple[int, ...]:
    """Changes with the file; empty while there is none."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
