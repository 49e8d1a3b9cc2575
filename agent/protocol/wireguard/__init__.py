"""WireGuard without input or output (tailnet.md §7): handshakes, sessions, cookies, timers."""

from agent.protocol.wireguard.device import Counters, Datagram, Device, Received
from agent.protocol.wireguard.peer import MAX_QUEUED, Peer

__all__ = ["MAX_QUEUED", "Counters", "Datagram", "Device", "Peer", "Received"]
