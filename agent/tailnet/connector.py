"""HTTP clients through the tailnet: an aiohttp connector whose connections are streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from agent.clock import Clock
from agent.protocol.tcp import TcpError
from agent.tailnet.transport import ByteStream, StreamTransport

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.tracing import Trace

Dial = Callable[[str, int], Awaitable[ByteStream]]
"""Makes a connection to a host and a port as a URL names them."""


class TailnetConnector(aiohttp.BaseConnector):
    """Connections come from `dial`, which has its own time limit; `unreachable` are the errors with which it says no.

    They, and a `TcpError`, reach whoever makes the request as `aiohttp.ClientConnectorError`. Only plain HTTP and
    WebSockets: what is carried is encrypted by the tailnet. `force_close`: no connection is used twice.
    """

    allowed_protocol_schema_set = frozenset({"http", "ws", ""})

    def __init__(
        self,
        dial: Dial,
        clock: Clock,
        *,
        unreachable: tuple[type[Exception], ...] = (),
        limit: int = 100,
        keepalive_timeout: float = 15.0,
        force_close: bool = False,
    ) -> None:
        # aiohttp takes the two for a contradiction.
        kept: dict[str, Any] = {"force_close": True} if force_close else {"keepalive_timeout": keepalive_timeout}
        super().__init__(limit=limit, **kept)
        self._dial = dial
        self._clock = clock
        self._unreachable: tuple[type[Exception], ...] = (*unreachable, TcpError, OSError)

    async def _create_connection(
        self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        host, port = req.url.raw_host, req.url.port
        assert host is not None
        assert port is not None
        try:
            stream = await self._dial(host, port)
        except self._unreachable as error:
            cause = error if isinstance(error, OSError) else OSError(None, str(error))
            raise aiohttp.ClientConnectorError(req.connection_key, cause) from error
        protocol: ResponseHandler = self._factory()
        StreamTransport(stream, protocol, self._clock, {"peername": (host, port)})
        return protocol
