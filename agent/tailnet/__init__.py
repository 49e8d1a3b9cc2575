"""The network between agents and their clients (tailnet.md)."""
