"""`--auth auto`: which cloud is this? DMI says it at once, else the metadata services are asked; a token comes last."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from agent.clock import Clock, deadline
from agent.identity.clouds import CLOUDS, Cloud
from agent.identity.instance import ExchangeRefusedError, OpenAsker, logger
from agent.identity.metadata import MetadataService, http_asker
from agent.identity.token import CredentialSource, IdentityError

PROBE_LIMIT = 1.0
"""Seconds in which a metadata service must answer to be found: one that is there answers within milliseconds."""


class Auto:
    """Finds the cloud at the first dial that succeeds in it, then uses `make_source` for it.

    `token` is the source for a machine in no cloud, None where no token is configured. It also serves where the cloud
    was found and the control plane refuses its proof, or the metadata fail: an agent with a token is not to stay away
    because its cloud has a bad day. The proof comes first at every dial.
    """

    def __init__(
        self,
        make_source: Callable[[Cloud], CredentialSource],
        token: CredentialSource | None,
        environment: Mapping[str, str],
        clock: Clock,
        open_asker: OpenAsker = http_asker,
        sys_directory: str = "/sys",
    ) -> None:
        self._make_source = make_source
        self._token = token
        self._environment = environment
        self._clock = clock
        self._open_asker = open_asker
        self._sys = sys_directory
        self._found: CredentialSource | None = None
        self._told = ""

    async def obtain(self) -> str:
        if self._found is None:
            self._found = await self._find()
        if self._found is None:
            if self._token is None:
                raise IdentityError(
                    "this machine shows no sign of AWS, Azure or Google Cloud, neither in its DMI data nor by a "
                    "metadata service: set CODER_AGENT_TOKEN or CODER_AGENT_TOKEN_FILE, or name the cloud with --auth"
                )
            self._tell("this machine is in no cloud that shows itself: using the configured token")
            return await self._token.obtain()
        try:
            return await self._found.obtain()
        except IdentityError as error:
            if self._token is None or (isinstance(error, ExchangeRefusedError) and error.status >= 500):
                raise
            self._tell(f"instance identity failed, so the configured token serves: {error}")
            return await self._token.obtain()

    def _tell(self, text: str) -> None:
        if text != self._told:  # and not again at each dial
            logger().warning(text)
        self._told = text

    async def _find(self) -> CredentialSource | None:
        by_dmi = await asyncio.to_thread(recognise, self._sys)
        if by_dmi is not None:
            cloud, why = by_dmi
        else:
            by_probe = await self._probe()
            if by_probe is None:
                return None
            cloud, why = by_probe, "its metadata service answers"
        logger().info(f"this machine is in {cloud.title}", because=why, auth=cloud.method)
        return self._make_source(cloud)

    async def _probe(self) -> Cloud | None:
        tasks = [asyncio.create_task(self._is_there(cloud), name=f"probe {cloud.title}") for cloud in CLOUDS]
        try:
            async with deadline(self._clock, PROBE_LIMIT):
                for first in asyncio.as_completed(tasks):
                    if (cloud := await first) is not None:
                        return cloud
        except TimeoutError:
            pass  # nobody answered yet, which is what the limit is for
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return None

    async def _is_there(self, cloud: Cloud) -> Cloud | None:
        try:
            address = cloud.address(self._environment)
            async with self._open_asker() as asker:
                await cloud.is_there(MetadataService(f"metadata of {cloud.title}", address, asker, self._clock))
        except IdentityError:
            return None  # another cloud, or none: this is the answer to the question
        return cloud


def recognise(sys_directory: str = "/sys") -> tuple[Cloud, str] | None:
    """The cloud that the machine's DMI data name, and by which fact. Reads files."""
    for cloud in CLOUDS:
        for name, beginning in cloud.dmi:
            try:
                with open(os.path.join(sys_directory, name), "rb") as file:
                    value = file.read(256).decode(errors="replace").strip()
            except OSError:  # no such fact on this kind of machine, or not for this user
                continue
            if value.lower().startswith(beginning.lower()):
                return cloud, f"{os.path.basename(name)} is {value}"
    return None
