"""The life of the agent process: configuration, connection, manifest, lifecycle, shutdown; `app.py` composes it."""
