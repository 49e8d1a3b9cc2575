"""Calls of the client side: one yamux stream per call (agent-api.md §6.4)."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from agent.api.methods import RpcMethod
from agent.api.versions import ApiVersion
from agent.clock import Clock, wait_for
from agent.protocol.drpc import (
    CallEnded,
    CallFailed,
    ClientCall,
    DrpcError,
    ErrorCode,
    MessageReceived,
    SendingEnded,
)
from agent.protocol.yamux import Role
from agent.rpc.connection import MuxConnection, MuxStream
from agent.rpc.errors import CallError, ConnectionLostError, RpcError, StreamBrokenError, UnsupportedError
from agent.rpc.transport import NORMAL, Transport

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

UNKNOWN_RPC = "protocol error: unknown rpc"
"""How a server says that it does not know a method, besides code 12 (§7.2)."""


class Duplex:
    """A call whose messages go both ways until either side ends it. Use it as `async with`."""

    def __init__(self, stream: MuxStream, call: ClientCall) -> None:
        self._stream = stream
        self._call = call
        self._inbox: deque[bytes] = deque()
        self._over = False
        self._failure: CallError | None = None
        """How the server ended the call; told after the messages that came before."""

    async def send(self, data: bytes) -> None:
        """Send one message, waiting for the peer's window. Raises `StreamBrokenError`, `ConnectionLostError`.

        After a `StreamBrokenError`, `receive` tells what the server had to say.
        """
        if self._call.ended:
            raise StreamBrokenError("the call is over")
        await self._stream.write(_message(self._call, data))

    async def close_send(self) -> None:
        """Tell the server that no more messages come."""
        if not self._call.ended:
            await self._stream.write(self._call.close_send())

    async def receive(self) -> bytes | None:
        """The next message, or None at the end. Raises `RpcError`, `StreamBrokenError`, `ConnectionLostError`."""
        while not self._inbox:
            if self._failure is not None:
                raise self._failure
            if self._over:
                return None
            data = await self._stream.read()
            if not data:
                raise StreamBrokenError("the server ended the stream within a call")
            try:
                events = self._call.receive(data)
            except DrpcError as error:
                raise StreamBrokenError(f"the server broke a rule of dRPC: {error}") from error
            for event in events:
                match event:
                    case MessageReceived(message):
                        self._inbox.append(message)
                    case CallFailed(code, text):
                        self._failure = _remote_error(code, text)
                    case CallEnded(cancelled=True):
                        self._failure = StreamBrokenError("the server cancelled the call")
                    case SendingEnded() | CallEnded():
                        self._over = True
        return self._inbox.popleft()

    async def __aenter__(self) -> Duplex:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A Go client cancels a call just so: FIN, no Cancel frame (§6.4).
        self._stream.close(discard=True)


class RpcClient:
    """The client of one connection."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._clock = clock
        self._connection = MuxConnection(transport, Role.CLIENT, clock)

    async def start(self) -> None:
        """Begin to read and write."""
        self._connection.start()

    async def wait_closed(self) -> Exception | None:
        """Wait for the end of the connection; the cause, or None when it ended by a plain close."""
        return await self._connection.wait_closed()

    async def aclose(self, code: int = NORMAL, reason: str = "") -> None:
        """Close the connection; calls that are going on fail with `ConnectionLostError`. Idempotent."""
        await self._connection.aclose(code, reason)

    async def ping(self, timeout: float) -> float:
        """Round trip of a yamux ping in seconds. Raises `ConnectionLostError` after `timeout` seconds."""
        return await self._connection.ping(timeout)

    async def unary(self, path: str, request: bytes, timeout: float | None = None) -> bytes:
        """One request, one response. Raises `RpcError`, `StreamBrokenError`, `ConnectionLostError`."""
        if timeout is None:
            return await self._unary(path, request)
        try:
            return await wait_for(self._clock, self._unary(path, request), timeout)
        except TimeoutError as error:
            raise ConnectionLostError(f"no answer to {path} within {timeout:g} s") from error

    async def _unary(self, path: str, request: bytes) -> bytes:
        async with await self._call(path, request) as call:
            response = await call.receive()
            if response is None:
                raise StreamBrokenError(f"the server ended {path} without an answer")
            return response

    async def stream(self, path: str, request: bytes) -> AsyncGenerator[bytes]:
        """One request, any number of responses; leaving the loop early cancels the call."""
        async with await self._call(path, request) as call:
            while (message := await call.receive()) is not None:
                yield message

    async def duplex(self, path: str) -> Duplex:
        """Messages in both directions. Raises `ConnectionLostError`."""
        call = ClientCall(path)
        return await self._begin(call, call.invoke())

    async def _call(self, path: str, request: bytes) -> Duplex:
        call = ClientCall(path)
        return await self._begin(call, call.invoke() + _message(call, request) + call.close_send())

    async def _begin(self, call: ClientCall, packets: bytes) -> Duplex:
        stream = await self._connection.open_stream()
        try:
            await stream.write(packets)
        except StreamBrokenError:
            pass  # a server may answer, and end, before it took everything: reading tells what happened
        except BaseException:
            stream.close(discard=True)
            raise
        return Duplex(stream, call)


class RpcAgentApi:
    """`agent.api.methods.AgentApi` over a connection and the API version that was negotiated for it."""

    def __init__(self, client: RpcClient, version: ApiVersion) -> None:
        self.client = client
        self._version = version

    @property
    def version(self) -> ApiVersion:
        """What was negotiated with this server."""
        return self._version

    async def call(
        self, method: RpcMethod[Request, Response], request: Request, *, timeout: float | None = None
    ) -> Response:
        """One unary RPC; `timeout` is in seconds."""
        return await self.call_encoded(method, request.SerializeToString(), timeout=timeout)

    async def call_encoded(
        self, method: RpcMethod[Request, Response], request: bytes, *, timeout: float | None = None
    ) -> Response:
        """The same with a request that is protobuf bytes already."""
        if method.since > self._version:
            raise UnsupportedError(f"the server (API {self._version}) does not offer {method.name}")
        answer = await self.client.unary(method.path, request, timeout)
        try:
            return method.response.FromString(answer)
        except DecodeError as error:
            raise StreamBrokenError(
                f"the server's answer to {method.name} is not a {method.response.__name__}"
            ) from error


def _message(call: ClientCall, data: bytes) -> bytes:
    try:
        return call.message(data)
    except DrpcError as error:
        raise StreamBrokenError(f"it cannot be sent: {error}") from error


def _remote_error(code: int, text: str) -> RpcError:
    if code == ErrorCode.UNIMPLEMENTED or text.startswith(UNKNOWN_RPC):
        return UnsupportedError(text)
    return RpcError(text, code)
