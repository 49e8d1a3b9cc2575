"""What an agent says about the ports that listen in its workspace (terminal-ssh-http.md §4.2), and word of changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import msgspec
from aiohttp.http_exceptions import LineTooLong

from agent.clock import Clock, wait_for
from agent.server.errors import ApiError, ErrorBody
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.tailnet.connector import TailnetConnector
from agent.tailnet.streams import TailnetStream

PORT: Final = 4
LIMIT: Final = 30.0
"""Seconds for everything, the connection to the agent included."""
MAX_BODY: Final = 4 * 1024 * 1024
FETCH_FAILED: Final = "Internal error fetching listening ports."
LOWEST: Final = 9
_SYSTEM: Final = frozenset((20, 21, 22, 23, 25, 53, 110, 143, 179, 389, 465, 587, 636, 989, 990, 993, 995))
_DATABASES: Final = frozenset((3306, 3389, 5432, 27017, 27018, 27019, 28017))
HIDDEN: Final = _SYSTEM | _DATABASES
"""Mail, databases and the like: nothing to open in a browser."""
SILENCE: Final = 30.0
"""Seconds after which an agent is taken for gone that tells of changes: it says something every 10 s."""
POLL: Final = 5.0
"""Seconds between two questions to an agent that tells of no changes, as the Go agent does not."""


class ListeningPort(msgspec.Struct, kw_only=True):
    """`process_name` is empty where the agent may not know it."""

    process_name: str
    network: str
    port: int


class PortList(msgspec.Struct):
    """In the agent's order."""

    ports: list[ListeningPort]

    def shown(self, apps: Collection[int]) -> PortList:
        """Without what nobody opens in a browser, and without the ports of apps, which have their own place (§4.2)."""
        return PortList(
            [item for item in self.ports if item.port >= LOWEST and item.port not in HIDDEN and item.port not in apps]
        )


class AgentPorts:
    """Asks agents. All mistakes and troubles are `ApiError`s in the words of §3.5."""

    def __init__(self, network: AgentNetwork, clock: Clock) -> None:
        self._network, self._clock = network, clock

    async def ask(self, agent: UUID) -> PortList:
        """What listens now. Raises `ApiError` 500."""
        try:
            return await wait_for(self._clock, self._ask(agent), LIMIT)
        except TimeoutError as error:
            raise ApiError(500, FETCH_FAILED, f"no answer within {LIMIT:g} s") from error

    async def changes(self, agent: UUID) -> AsyncGenerator[PortList | None]:
        """What listens, now and at each change; None, every few seconds, says that nothing has changed.

        Raises `ApiError` 500 when the agent answers no more.
        """
        async with self._get(agent, "/api/v0/listening-ports/watch", LIMIT) as answer:
            while answer.status == 200:
                try:
                    line = await wait_for(self._clock, answer.content.readuntil(max_size=MAX_BODY), SILENCE)
                except TimeoutError as error:
                    raise ApiError(500, FETCH_FAILED, f"nothing came for {SILENCE:g} s") from error
                except LineTooLong as error:
                    raise ApiError(500, FETCH_FAILED, "the agent's answer is too large") from error
                if not line:
                    raise ApiError(500, FETCH_FAILED, "the agent ended its answer")
                yield _decode(line) if line.strip() else None
        known: PortList | None = None
        while True:
            found = await self.ask(agent)
            yield found if found != known else None
            known = found
            await self._clock.sleep(POLL)

    async def _ask(self, agent: UUID) -> PortList:
        async with self._get(agent, "/api/v0/listening-ports", LIMIT) as answer:
            body = await _read(answer)
            if answer.status != 200:
                raise ApiError(500, FETCH_FAILED, f"the agent answered {answer.status}: {_message(body)}")
        return _decode(body)

    @asynccontextmanager
    async def _get(self, agent: UUID, path: str, limit: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """`limit`: seconds for the connection and the head of the answer."""

        async def dial(host: str, port: int) -> TailnetStream:
            return await self._network.dial(agent, port, limit)

        connector = TailnetConnector(dial, self._clock, unreachable=(AgentUnreachableError,))
        session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
        )
        async with session:
            try:
                request = session.get(f"http://agent:{PORT}{path}", allow_redirects=False)
                async with await wait_for(self._clock, request, limit) as answer:
                    yield answer
            except aiohttp.ClientConnectorError as error:
                raise ApiError(500, "Internal error dialing workspace agent.", str(error.os_error)) from error
            except aiohttp.ClientError as error:
                raise ApiError(500, FETCH_FAILED, str(error)) from error
            except TimeoutError as error:
                raise ApiError(500, FETCH_FAILED, f"no answer within {limit:g} s") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises `ApiError` when an agent says more than any list of ports can be."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise ApiError(500, FETCH_FAILED, f"the agent's answer is larger than {MAX_BODY} bytes")
    return bytes(body)


def _decode(body: bytes) -> PortList:
    try:
        return msgspec.json.decode(body, type=PortList)
    except msgspec.DecodeError as error:
        raise ApiError(500, FETCH_FAILED, f"the agent's answer: {error}") from error


def _message(body: bytes) -> str:
    """What an agent's error says."""
    try:
        error = msgspec.json.decode(body, type=ErrorBody)
    except msgspec.DecodeError:
        return repr(body[:100])
    return f"{error.message} {error.detail}".strip()


def port_of(url: str) -> int:
    """The port that an app's URL names, 0 if it names none."""
    try:
        return urlsplit(url).port or 0
    except ValueError:
        return 0
