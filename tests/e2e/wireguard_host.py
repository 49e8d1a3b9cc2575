"""Our WireGuard device beside wireguard-go in one network namespace; run by test_wireguard_peer.py inside it.

    python -m tests.e2e.wireguard_host SCENARIO

Here the kernel has one end of the tunnel, through wireguard-go's TUN device, and our device has the other. The
datagrams between the two go over UDP on the loopback interface. A scenario that fails raises.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path

from agent.protocol import ip
from agent.protocol.wireguard import Device
from agent.protocol.wireguard.keypairs import REKEY_AFTER_TIME
from tests.protocol.wireguard.kit import (
    AGENT_ADDRESS,
    AGENT_PRIVATE,
    CLIENT_ADDRESS,
    CLIENT_PRIVATE,
    WALL_NS,
    counting,
    outgoing,
)

INTERFACE = "wg0"
THEIR_PORT = 51820
PATIENCE = 20.0
_TICK = 0.002
"""Seconds between two looks at the kernel's end, which the loop does not wait for."""
ECHO_REQUEST, ECHO_REPLY = 128, 129
ICMPV6 = 58

OURS, THEIRS = AGENT_ADDRESS, CLIENT_ADDRESS
"""Inner addresses: our device is the agent, the kernel behind wireguard-go is the client."""


def shell(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=10)


def _base64(key: bytes) -> str:
    return b64encode(key).decode()


def start_wireguard_go(stack: ExitStack, interface: str, private: bytes, port: int) -> subprocess.Popen[bytes]:
    """A wireguard-go with a TUN device of that name and a UDP port; it ends with the stack."""
    process = subprocess.Popen(["wireguard-go", "-f", interface], stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    deadline = time.monotonic() + PATIENCE
    while not Path(f"/var/run/wireguard/{interface}.sock").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("wireguard-go does not start")
        time.sleep(0.02)
    with tempfile.NamedTemporaryFile("w", suffix=".key") as file:
        file.write(_base64(private))
        file.flush()
        shell("wg", "set", interface, "private-key", file.name, "listen-port", str(port))
    return process


def set_peer(interface: str, key: bytes, address: bytes, port: int) -> None:
    """The one that the interface talks to: its key, its inner address, its UDP port on the loopback interface."""
    shell("wg", "set", interface, "peer", _base64(key), "allowed-ips", f"{IPv6Address(address)}/128",
          "endpoint", f"127.0.0.1:{port}")  # fmt: skip


def set_address(interface: str, own: bytes, peer: bytes, *inside: str, mtu: int = 1280) -> None:
    """The kernel's address and its way to the peer; `inside` begins a command in the interface's namespace."""
    shell(*inside, "ip", "-6", "address", "add", f"{IPv6Address(own)}/128", "dev", interface, "nodad")
    shell(*inside, "ip", "link", "set", interface, "mtu", str(mtu), "up")
    shell(*inside, "ip", "-6", "route", "add", f"{IPv6Address(peer)}/128", "dev", interface)


class Host:
    """The kernel's end, wireguard-go, our device and its socket; one loop drives them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.skip = 0.0
        """Seconds by which our device's time is ahead of the machine's."""
        self.device = Device(AGENT_PRIVATE)
        self._their_key = Device(CLIENT_PRIVATE).public_key
        self._udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._udp.bind(("127.0.0.1", 0))
        self._udp.setblocking(False)
        self.peer = self.device.add_peer(self._their_key, [THEIRS])
        self.inner: list[bytes] = []
        """Packets that came through the tunnel and that nobody has looked at."""
        self.kinds: list[int] = []
        """Types of the messages that wireguard-go sent."""
        self.established = 0
        self.start_peer()
        self.raw = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6))
        self.raw.setblocking(False)

    def start_peer(self) -> None:
        """wireguard-go with our key and the kernel's address, in the foreground until the scenario ends."""
        self._process = start_wireguard_go(self._stack, INTERFACE, CLIENT_PRIVATE, THEIR_PORT)
        set_peer(INTERFACE, self.device.public_key, OURS, self._udp.getsockname()[1])
        set_address(INTERFACE, THEIRS, OURS)

    def restart_peer(self) -> None:
        """Another process with the same keys, which knows nothing of our sessions."""
        self._process.terminate()
        self._process.wait(timeout=10)
        self.start_peer()

    @property
    def now(self) -> float:
        return time.monotonic() + self.skip

    def send(self, packets: list[bytes]) -> None:
        self.transmit(outgoing(self.device.send(packets, self.now, time.time_ns())))

    def transmit(self, datagrams: list[bytes]) -> None:
        """To wireguard-go's UDP port."""
        for datagram in datagrams:
            self._udp.sendto(datagram, ("127.0.0.1", THEIR_PORT))

    def pump(self, until: Callable[[], bool]) -> None:
        """Carries datagrams and fires timers until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing came of it in {PATIENCE:.0f} s: {self.device.counters}")
            due = self.device.next_timeout()
            wait = _TICK if due is None else max(0.0, min(_TICK, due - self.now))
            readable, _, _ = select.select([self._udp], [], [], wait)
            if readable:
                self._receive()
            self.transmit(outgoing(self.device.handle_timeout(self.now, time.time_ns())))

    def _receive(self) -> None:
        batch = []
        for _ in range(64):
            try:
                batch.append(self._udp.recv(65535))
            except BlockingIOError:
                break
        self.kinds += [datagram[0] for datagram in batch]
        received = self.device.receive(batch, self.now, time.time_ns(), b"their address")
        self.transmit(outgoing(received.output) + received.replies)
        self.established += len(received.established)
        for _, packets in received.packets:
            replies = []
            for packet in packets:
                reply = ip.echo_reply(packet)
                if reply is None:
                    self.inner.append(packet)
                else:
                    replies.append(reply)
            self.send(replies)

    def kernel_pings_us(self, content: bytes) -> None:
        """The kernel's echo request is answered by us."""
        request = struct.pack(">BBHHH", ECHO_REQUEST, 0, 0, 7, 1) + content
        self.raw.sendto(request, (str(IPv6Address(OURS)), 0))
        replies: list[bytes] = []

        def answered() -> bool:
            try:
                message, (address, *_) = self.raw.recvfrom(4096)
            except BlockingIOError:
                return False
            if message[0] == ECHO_REPLY and IPv6Address(address) == IPv6Address(OURS):
                replies.append(message[8:])
            return content in replies

        self.pump(answered)

    def we_ping_the_kernel(self, content: bytes) -> None:
        """Our echo request is answered by the kernel."""
        body = bytearray(struct.pack(">BBHHH", ECHO_REQUEST, 0, 0, 7, 1) + content)
        body[2:4] = ip.checksum_of(ip.build(OURS, THEIRS, ICMPV6, bytes(body))).to_bytes(2, "big")
        self.send([ip.build(OURS, THEIRS, ICMPV6, bytes(body))])
        self.pump(lambda: any(packet[40] == ECHO_REPLY and packet[48:] == content for packet in self.inner))
        self.inner.clear()


def initiator(host: Host) -> None:
    """We begin, and the session carries pings both ways."""
    for size in (0, 1, 56, 1232):
        host.we_ping_the_kernel(os.urandom(size))
        host.kernel_pings_us(os.urandom(size))
    _expect(host.kinds[0] == 2, f"our initiation is answered first: {host.kinds[:4]}")
    _expect(host.established == 1, f"one session is enough, not {host.established}")


def responder(host: Host) -> None:
    """wireguard-go begins, and the session carries pings both ways."""
    for size in (0, 1, 56, 1232):
        host.kernel_pings_us(os.urandom(size))
        host.we_ping_the_kernel(os.urandom(size))
    _expect(host.kinds[0] == 1, f"its initiation comes first: {host.kinds[:4]}")
    _expect(host.established == 1, f"one session is enough, not {host.established}")


def bulk(host: Host) -> None:
    """Datagrams of full size both ways, new keys in the middle of it: all arrive."""
    port = 4000
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as kernel:
        kernel.bind((str(IPv6Address(THEIRS)), port))
        kernel.setblocking(False)
        host.we_ping_the_kernel(b"begin")
        for window in range(120):
            if window == 60:
                host.skip += REKEY_AFTER_TIME + 1
            texts = [struct.pack(">II", window, number) + bytes(1224) for number in range(16)]
            host.send([ip.build_udp(ip.Datagram(OURS, port, THEIRS, port, text)) for text in texts])
            got: list[bytes] = []

            def arrived(got: list[bytes] = got) -> bool:
                while True:
                    try:
                        got.append(kernel.recv(2048))
                    except BlockingIOError:
                        return len(got) == 16

            host.pump(arrived)
            _expect(got == texts, "what we sent came to the kernel in order")
            for text in texts:
                kernel.sendto(text, (str(IPv6Address(OURS)), port))
            host.pump(lambda: len(host.inner) == 16)
            back = [ip.parse_udp(packet) for packet in host.inner]
            _expect([bytes(one.payload) for one in back if one] == texts, "what the kernel sent came to us in order")
            host.inner.clear()
    _expect(host.established == 2, "there were new keys")
    _expect(host.device.counters == type(host.device.counters)(), f"nothing was dropped: {host.device.counters}")


def restart(host: Host) -> None:
    """A peer that forgot the session makes a new one, whoever speaks first."""
    host.kernel_pings_us(b"first life")
    host.restart_peer()
    host.kernel_pings_us(b"second life")
    host.restart_peer()
    host.device.forget_keys(host.peer.public_key)
    host.we_ping_the_kernel(b"third life")


def our_cookie(host: Host) -> None:
    """We are under load: wireguard-go proves its address with our cookie and gets in at its second try."""
    stranger = Device(bytes(range(32)), counting())
    stranger.add_peer(host.device.public_key, [OURS])
    (stray,) = outgoing(stranger.send([ip.build(THEIRS, OURS, 59, b"")], 0.0, WALL_NS))
    request = struct.pack(">BBHHH", ECHO_REQUEST, 0, 0, 7, 1)
    host.raw.sendto(request, (str(IPv6Address(OURS)), 0))

    def flooded_until_established() -> bool:
        # From many: one source alone is held back by itself.
        for number in range(200):
            host.device.receive([stray], host.now, time.time_ns(), number.to_bytes(2, "big"))
        return bool(host.established)

    host.pump(flooded_until_established)
    _expect(host.kinds.count(1) == 2, f"two initiations, the second with mac2: {host.kinds}")


def their_cookie(host: Host) -> None:
    """wireguard-go is under load: we prove our address with its cookie."""
    stranger = Device(bytes(range(32)), counting())
    stranger.add_peer(host.peer.public_key, [THEIRS])
    (stray,) = outgoing(stranger.send([ip.build(OURS, THEIRS, 59, b"")], 0.0, WALL_NS))

    while not host.peer._stamper.has_cookie(host.now):
        # Begin again: it had time for us, or its socket had no room.
        host.device.forget_keys(host.peer.public_key)
        host.transmit([stray] * 200)
        host.send([ip.build(OURS, THEIRS, 59, b"x")])
        soon = time.monotonic() + 0.2
        host.pump(lambda soon=soon: host.peer._stamper.has_cookie(host.now) or time.monotonic() > soon)  # type: ignore[misc]
    # It is under load for a second after the flood. Our next try is due in five.
    established = host.established
    host.skip += 6
    host.pump(lambda: host.established > established)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


SCENARIOS: dict[str, Callable[[Host], None]] = {
    scenario.__name__: scenario for scenario in (initiator, responder, bulk, restart, our_cookie, their_cookie)
}


def main() -> None:
    """Makes the namespace usable and runs the scenario."""
    # Of our own, as the namespace is: wireguard-go's control socket has a path for everybody.
    shell("mount", "-t", "tmpfs", "tmpfs", "/run")
    os.mkdir("/run/wireguard")
    shell("ip", "link", "set", "lo", "up")
    with ExitStack() as stack:
        SCENARIOS[sys.argv[1]](Host(stack))


if __name__ == "__main__":
    main()
