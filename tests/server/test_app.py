"""Listening, starting and stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from agent.api.versions import ApiVersion
from agent.clock import SystemClock
from agent.protocol import stun
from agent.protocol.ip import mapped
from agent.server.app import ListenError, listen, run, url_of
from agent.server.config import ServerConfig, ServerConfigError


def config(tmp_path: Path, **settings: object) -> ServerConfig:
    return ServerConfig(data_dir=tmp_path / "data", **settings)  # type: ignore[arg-type]


def test_a_taken_default_port_gives_way_and_a_wanted_one_does_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with listen(config(tmp_path, port=port)) as bound:
            assert bound.getsockname()[1] not in (0, port)
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1 port {port}: address already in use"):
            listen(config(tmp_path, port=port, port_is_fixed=True))


def test_addresses_that_do_not_work(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"address 'nowhere.invalid' is not known"):
        listen(config(tmp_path, address="nowhere.invalid", port=0))
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1"):
        listen(config(tmp_path, address="192.0.2.1", port=0))


def test_the_address_that_people_are_told(tmp_path: Path) -> None:
    with listen(config(tmp_path, address="0.0.0.0", port=0)) as bound:
        assert url_of(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": 70000}, "port 70000 is no port"),
        ({"access_url": "example.com"}, "access URL 'example.com' must look like"),
        ({"stun_port": -1}, "STUN port -1 is no port"),
        ({"api_version": ApiVersion(3, 0)}, "API version 3.0 is not offered"),
        ({"ping_period": 0}, "ping_period must be above 0"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ServerConfigError, match=message):
        config(tmp_path, **settings)


async def test_a_server_from_start_to_stop(tmp_path: Path) -> None:
    said: list[str] = []

    async def visit() -> None:
        link = said[-1].partition("log in at ")[2]
        jar = aiohttp.CookieJar(unsafe=True)
        async with (
            aiohttp.ClientSession(cookie_jar=jar) as browser,
            browser.get(link, allow_redirects=False) as response,
        ):
            assert (response.status, response.headers["Location"]) == (303, "/")
        os.kill(os.getpid(), signal.SIGTERM)

    await _run_with(config(tmp_path, port=0), said, visit)
    assert said[0].startswith("listening on http://127.0.0.1:")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "server.db").exists()
    before = said[-1]
    await _run_with(config(tmp_path, port=0), said, visit)  # the same owner, another link
    assert said[-1] != before


async def test_a_server_that_answers_stun(tmp_path: Path) -> None:
    said: list[str] = []

    async def ask() -> None:
        port = int(said[1].removeprefix("answering STUN on UDP port "))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            client.send(stun.request(bytes(12)))
            answer = await asyncio.get_running_loop().sock_recv(client, 100)
            assert stun.parse_response(answer) == (bytes(12), (mapped(bytes((127, 0, 0, 1))), client.getsockname()[1]))
        os.kill(os.getpid(), signal.SIGTERM)

    await _run_with(config(tmp_path, port=0, stun_port=0), said, ask)


async def test_a_stun_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=f"cannot answer STUN on 127.0.0.1 UDP port {port}: address already in"):
            await run(config(tmp_path, port=0, stun_port=port), SystemClock(), lambda _: None)


async def _run_with(settings: ServerConfig, said: list[str], visit: Callable[[], Awaitable[None]]) -> None:
    serving = asyncio.create_task(run(settings, SystemClock(), said.append, print_login=True))
    count = len(said)
    async with asyncio.timeout(30):
        while len(said) < count + 2:
            await asyncio.sleep(0.02)
            if serving.done():
                serving.result()
        await visit()
        await serving
