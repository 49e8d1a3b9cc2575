"""How the agent is started and kept running: systemd units, their installation, and the parent that it has as PID 1."""
