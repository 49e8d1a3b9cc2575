"""What the agent's options say about SSH (daemon.md §1.1)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """`max_timeout` in seconds: a client that is silent so long is gone; below 3, how long a connection may be at all,
    0 for ever."""

    max_timeout: float = 72 * 3600.0
    block_file_transfer: bool = False
    block_local_forwarding: bool = False
    block_remote_forwarding: bool = False
