"""Layout and limits of WireGuard's four messages (tailnet.md §7.1, §7.2)."""

from __future__ import annotations

import struct

INITIATION, RESPONSE, COOKIE_REPLY, TRANSPORT = 1, 2, 3, 4

INITIATION_SIZE = 148
RESPONSE_SIZE = 92
COOKIE_REPLY_SIZE = 64
TRANSPORT_OVERHEAD = 32
"""Header and tag of a transport message, which is also the size of the shortest one: the keepalive."""

MAC_SIZE = 16
MACS_SIZE = 2 * MAC_SIZE
"""mac1 and mac2 end an initiation and a response."""

KEY_SIZE = 32
COOKIE_NONCE_SIZE = 24

INITIATION_HEADER = struct.Struct("<II")
"""Message type, sender index."""
RESPONSE_HEADER = struct.Struct("<III")
"""Message type, sender index, receiver index."""
COOKIE_HEADER = struct.Struct("<II")
"""Message type, receiver index."""
TRANSPORT_HEADER = struct.Struct("<IIQ")
"""Message type, receiver index, counter."""
NONCE = struct.Struct("<IQ")
"""Four zero bytes, counter."""
