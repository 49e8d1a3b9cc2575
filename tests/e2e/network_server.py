"""The real server as a program that also lets a test use the server's own node.

It takes the arguments that `Deployment` gives to the server. A second port, only for the test, has `GET
/dial/AGENT/PORT` (a WebSocket that carries the stream's bytes) and `GET /ping/AGENT`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from aiohttp import WSMsgType, web

from agent.clock import SystemClock
from agent.protocol.tcp import TcpError
from agent.server.app import listen, open_server, url_of
from agent.server.config import ServerConfig
from agent.server.listening import serving
from agent.server.network import AgentNetwork, AgentUnreachableError
from agent.tailnet.streams import TailnetStream


class Window:
    """What the test sees of the server."""

    def __init__(self, network: AgentNetwork) -> None:
        self._network = network

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/dial/{agent}/{port}", self._dial)
        app.router.add_get("/ping/{agent}", self._ping)
        return app

    async def _ping(self, request: web.Request) -> web.Response:
        agent = UUID(request.match_info["agent"])
        try:
            answered = await self._network.ping(agent)
        except AgentUnreachableError as error:
            return web.Response(status=502, text=str(error))
        path = self._network.path(agent)
        return web.json_response({"answered": asdict(answered), "path": None if path is None else asdict(path)})

    async def _dial(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        agent, port = UUID(request.match_info["agent"]), int(request.match_info["port"])
        try:
            stream = await self._network.dial(agent, port, float(request.query.get("timeout", "20")))
        except AgentUnreachableError as error:
            await socket.close(code=1011, message=f"{type(error).__name__} {error}".encode()[:123])
            return socket
        await socket.send_str("connected")
        reading = asyncio.create_task(self._copy(stream, socket))
        try:
            async for message in socket:
                if message.type is WSMsgType.BINARY:
                    await stream.write(message.data)
        except TcpError:
            pass  # `_copy` tells
        finally:
            stream.close()
            await reading
        return socket

    async def _copy(self, stream: TailnetStream, socket: web.WebSocketResponse) -> None:
        try:
            while data := await stream.read():
                await socket.send_bytes(data)
        except TcpError as error:
            await socket.close(code=1011, message=str(error).encode())
        else:
            await socket.close()


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--access-url", default="")
    parser.add_argument("--disable-direct-connections", action="store_true")
    given = parser.parse_args()
    config = ServerConfig(
        data_dir=given.data_dir,
        address=given.address,
        port=given.port,
        access_url=given.access_url,
        disable_direct=given.disable_direct_connections,
    )
    config.data_dir.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with listen(config) as bound, listen(ServerConfig(data_dir=given.data_dir, port=0)) as window:
        own_url = url_of(bound)
        async with (
            open_server(config, SystemClock(), config.access_url or own_url, own_url) as server,
            serving(server.app, bound),
        ):
            runner = web.AppRunner(Window(server.network).app())
            await runner.setup()
            await web.SockSite(runner, window).start()
            sys.stdout.write(f"window at {url_of(window)}\nlistening on {own_url}\n")
            sys.stdout.flush()
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main())
