"""The test kit that the package ships: a manual clock, scripted transports, fake peers."""

from agent.testing.clock import ManualClock, settle
from agent.testing.transport import MemoryTransport, memory_pair

__all__ = ["ManualClock", "MemoryTransport", "memory_pair", "settle"]
