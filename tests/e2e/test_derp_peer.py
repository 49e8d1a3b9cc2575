"""Our relay and our relay client against Tailscale's own, in the variant of Coder's deployments (tailnet.md §5).

The peer is tests/peers/tailnet; it is built here, and needs the `go` tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.protocol import derp, disco, keys
from tests.e2e.test_derp_client import Served, client, connected, plain, serving, until

pytestmark = pytest.mark.timeout(660)  # the first of them builds the peer; each has its own deadlines


class Running:
    """The peer's process, and what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def line(self, start: str) -> str:
        """The rest of the next line that begins so."""
        assert self.process.stdout is not None
        async with asyncio.timeout(15):
            while True:
                text = (await self.process.stdout.readline()).decode().strip()
                assert text, f"the peer ended after {self.said}"
                self.said.append(text)
                if text.startswith(start + " ") or text == start:
                    return text[len(start) + 1 :]


@asynccontextmanager
async def running(program: Path, *arguments: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.spec("tailnet", 29)
@pytest.mark.parametrize("websockets", [False, True])
async def test_our_client_at_their_relay(peer_program: Path, websockets: bool) -> None:
    async with running(peer_program, "derp-server") as server:
        port = int(await server.line("port"))
        async with (
            client(plain(port), home=True, force_websockets=websockets) as (one, owner, key),
            client(plain(port)) as (two, other, other_key),
        ):
            await connected(one)
            await connected(two)
            # Not more at a time than their queue of 32 takes, as they drop what is more.
            for size in (0, 1, 1312, 32000, 65536):
                sent = [bytes([n]) * size for n in range(16)]
                one.send(other_key, sent)
                assert [await other.packet() for _ in sent] == [(key, datagram) for datagram in sent]
                two.send(key, sent)
                assert [await owner.packet() for _ in sent] == [(other_key, datagram) for datagram in sent]
            assert 0 < await one.ping() < 5
            one.set_home(False)
            stranger = keys.public_key(keys.generate())
            one.send(stranger, [disco.MAGIC + bytes(100)])
            await until(lambda: owner.gone == [stranger])
            assert one.counters.failures == 0


@pytest.mark.spec("tailnet", 34, 35, 37)
@pytest.mark.parametrize("arguments", [(), ("-websocket",)])
async def test_their_client_at_our_relay(peer_program: Path, arguments: tuple[str, ...]) -> None:
    async with serving(Served()) as served:
        async with (
            running(peer_program, "derp-client", "-port", str(served.port), *arguments) as theirs,
            client(plain(served.port)) as (ours, owner, _),
        ):
            their_key = bytes.fromhex(await theirs.line("key"))
            await theirs.line("pong")
            await connected(ours)
            for size in (0, 1, 1312, 32000, 65536):
                sent = [bytes([n]) * size for n in range(16)]
                ours.send(their_key, sent)
                assert [await owner.packet() for _ in sent] == [(their_key, datagram) for datagram in sent]
            async with client(plain(served.port)) as (leaving, leaving_owner, leaving_key):
                await connected(leaving)
                leaving.send(their_key, [b"x"])
                await leaving_owner.packet()
            assert await theirs.line("gone") == f"{leaving_key.hex()} {derp.GoneReason.DISCONNECTED:d}"
            assert sorted(served.upgrades) == ["derp", "derp", "websocket" if arguments else "derp"]
        await until(lambda: not served.relay.clients)


@pytest.mark.spec("tailnet", 39)
async def test_their_health_check_finds_our_relay_healthy(peer_program: Path) -> None:
    """Two throw-away keys, and a packet a second from one to the other until it comes back."""
    async with serving(Served()) as served:
        port = ("-port", str(served.port))
        async with running(peer_program, "derp-client", *port) as one:
            first_key = await one.line("key")
            async with running(peer_program, "derp-client", *port, "-probe", first_key) as other:
                await other.line("answered")
                assert not any(line.startswith("websocket") for line in one.said + other.said)
                assert served.upgrades == ["derp", "derp"]


async def test_their_client_falls_back_at_our_relay(peer_program: Path) -> None:
    served = Served()
    served.refuse = (400, "no upgrades here\n")
    async with serving(served), running(peer_program, "derp-client", "-port", str(served.port)) as theirs:
        reason = await theirs.line("websocket")
        assert "GET failed with status code 400" in reason
        await theirs.line("key")
        assert served.upgrades == ["derp", "websocket"]
