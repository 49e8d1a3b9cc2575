"""The test kit that the package ships: a manual clock, scripted transports, fake peers."""

from agent.testing.clock import ManualClock, settle

__all__ = ["ManualClock", "settle"]
