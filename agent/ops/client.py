"""The other end of the control socket: what `workspace-agent status`, `drain`, `log-level` and `bundle` use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.clock import Clock
from agent.ops.address import short_path
from agent.process import home_directory

ANSWER_LIMIT: Final = 10.0
"""Seconds for an answer that takes no work."""
POLL: Final = 0.25
"""Seconds between two looks while something is waited for."""


class NoAgentError(Exception):
    """No agent answers at the socket; the text names it and says what to do."""


class RefusedError(Exception):
    """The agent answered, but did not do it; the text is its own."""


class NotReachedError(Exception):
    """What was waited for did not come, or cannot come any more; the text says how things stand."""


def find_socket(environment: Mapping[str, str]) -> Path:
    """Where the agent of this user, or of this workspace, is asked: commands that it starts have it in a variable."""
    named = environment.get("CODER_AGENT_STATUS_SOCKET", "")
    if named and named != "none":
        return Path(named)
    if not (state := environment.get("CODER_AGENT_STATE_DIR")):
        base = environment.get("XDG_STATE_HOME") or os.path.join(home_directory(environment), ".local/state")
        state = os.path.join(base, "workspace-agent")
    return Path(state) / "status.sock"


class ControlSocket:
    """The agent that listens at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def status(self) -> dict[str, Any]:
        """How things stand. Raises `NoAgentError`, `RefusedError`."""
        import json

        status = json.loads(await self.ask("GET", "/status"))
        assert isinstance(status, dict)
        return status

    async def ask(self, method: str, path: str, body: str = "", limit: float | None = ANSWER_LIMIT) -> bytes:
        """The body of the answer. Raises `NoAgentError`, `RefusedError`."""
        import aiohttp

        try:
            with short_path(self.path) as name:
                connector = aiohttp.UnixConnector(name)
                timeout = aiohttp.ClientTimeout(total=limit)
                async with (
                    aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                    session.request(method, f"http://agent{path}", data=body or None) as answer,
                ):
                    content = await answer.content.read(-1)
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or str(error) or f"nothing within {limit:g} s"
            raise NoAgentError(
                f'no agent answers at "{self.path}": {reason}; is it running, and as this user? '
                "--socket or CODER_AGENT_STATUS_SOCKET name another place"
            ) from error
        if answer.status >= 400:
            raise RefusedError(content.decode("utf-8", "replace").strip() or f"status {answer.status}")
        return content

    async def wait(self, wanted: str, limit: float, clock: Clock) -> dict[str, Any]:
        """The status once the agent is `connected` or `ready`; an agent that is not there yet is waited for, too.

        Raises `NotReachedError` after `limit` seconds, and when the start scripts ended otherwise than well.
        """
        until = clock.now() + limit
        while True:
            try:
                status = await self.status()
            except NoAgentError as error:
                found = str(error)
            else:
                if status[wanted]:
                    if wanted == "ready" and status["lifecycle"] != "ready":
                        raise NotReachedError(f"the start scripts have ended with {status['lifecycle']}; see the logs")
                    return status
                found = status["trouble"] or f"the agent is {status['lifecycle']}"
            if clock.now() >= until:
                raise NotReachedError(f"not {wanted} after {limit:g} s: {found}")
            await clock.sleep(POLL)
