"""RPC over one connection: yamux and dRPC driven by asyncio (agent-api.md §6)."""

from agent.rpc.client import Duplex, RpcAgentApi, RpcClient
from agent.rpc.connection import MuxConnection, MuxStream
from agent.rpc.errors import (
    CallError,
    ConnectionLostError,
    RpcError,
    StreamBrokenError,
    TransportError,
    UnsupportedError,
)
from agent.rpc.server import Handler, RpcServer, ServerStream, Streaming, Unary
from agent.rpc.transport import MAX_MESSAGE, Transport, WebSocketTransport

__all__ = [
    "MAX_MESSAGE",
    "CallError",
    "ConnectionLostError",
    "Duplex",
    "Handler",
    "MuxConnection",
    "MuxStream",
    "RpcAgentApi",
    "RpcClient",
    "RpcError",
    "RpcServer",
    "ServerStream",
    "StreamBrokenError",
    "Streaming",
    "Transport",
    "TransportError",
    "Unary",
    "UnsupportedError",
    "WebSocketTransport",
]
