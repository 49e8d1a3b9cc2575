"""The Tailnet service of one connection: coordination, DERP maps, resume tokens, workspace updates (tailnet.md §3)."""
