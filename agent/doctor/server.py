"""What the control plane says: to anybody, and to this agent.

The connection is made in another role than an agent's: the server does not take it for the agent, and one that runs
here is not disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from agent.api.methods import GET_MANIFEST
from agent.api.proto import agent_pb2 as pb
from agent.api.proto import tailnet_pb2 as tailnet
from agent.clock import wait_for
from agent.control import ControlHttp, ControlPlane, RedirectError, RefusedError, UnreachableError, VersionMismatchError
from agent.control.http import reaching, read_bounded
from agent.daemon.credentials import credential_source
from agent.doctor.finding import Finding, Subject, failed, ok, skipped, warning
from agent.identity import IdentityError
from agent.rpc import CallError, RpcAgentApi
from agent.version import VERSION

REQUEST_LIMIT: Final = 10.0
CONNECT_LIMIT: Final = 40.0
SKEW: Final = 60.0
"""Seconds that clocks may differ before TLS, tokens and time stamps suffer."""
MAX_ANSWER: Final = 64 * 1024


async def request(subject: Subject, headers: Sequence[tuple[str, str]]) -> list[Finding]:
    """One plain request without a token: does HTTP work, and do the clocks agree?"""
    http = ControlHttp(subject.url, headers, subject.clock)
    url = http.url("/api/v2/buildinfo")
    try:
        with reaching(url):
            began = subject.clock.wall()
            asked = http.session.get(url, proxy=http.proxy())
            async with await wait_for(subject.clock, asked, REQUEST_LIMIT) as answer:
                body = await wait_for(subject.clock, read_bounded(answer, MAX_ANSWER), REQUEST_LIMIT)
                date = answer.headers.get("Date", "")
            now = (began + subject.clock.wall()) / 2e9
    except (UnreachableError, RefusedError, RedirectError) as error:
        advice = "CODER_AGENT_URL must be the address of a control plane, and proxies in between must let it through"
        return [failed("HTTP", str(error), advice)]
    finally:
        await http.aclose()
    try:
        version = str(json.loads(body)["version"])
    except (ValueError, TypeError, KeyError):
        return [failed("HTTP", f"{url} is no control plane's answer", "check CODER_AGENT_URL")]
    return [ok("HTTP", f"a control plane of version {version}"), skew(date, now)]


def skew(date: str, now: float) -> Finding:
    """This machine's clock against the `Date` of an answer; `now` is in seconds since 1970."""
    try:
        difference = now - parsedate_to_datetime(date).timestamp() - 0.5  # the header has whole seconds
    except (ValueError, TypeError):
        return skipped("clock", "the server does not tell the time")
    if abs(difference) <= SKEW:
        return ok("clock", f"{abs(difference):.0f} s from the server's")
    ahead = "ahead of" if difference > 0 else "behind"
    return warning("clock", f"{abs(difference):.0f} s {ahead} the server's", "set the clock: run an NTP client")


async def connection(
    subject: Subject, headers: Sequence[tuple[str, str]]
) -> tuple[list[Finding], tailnet.DERPMap | None]:
    """WebSocket, token and API version, by a connection like the agent's; and the map of relays, if it got so far."""
    unknown = ControlHttp(subject.url, headers, subject.clock)
    http = ControlHttp(subject.url, headers, subject.clock)
    try:
        credentials = await credential_source(subject.config, unknown, subject.environment, subject.clock)
        plane = ControlPlane(http, credentials, subject.clock, role="doctor")
        api = await wait_for(subject.clock, plane.connect(), CONNECT_LIMIT)
        try:
            return await _talk(api)
        finally:
            await api.client.aclose()
    except IdentityError as error:
        return [failed("token", str(error), "see CODER_AGENT_TOKEN, CODER_AGENT_TOKEN_FILE and CODER_AGENT_AUTH")], None
    except RefusedError as error:
        return [_refused(error)], None
    except VersionMismatchError as error:
        return [failed("API version", str(error), f"this agent is {VERSION}")], None
    except (UnreachableError, RedirectError, TimeoutError) as error:
        advice = "a proxy in between may not let WebSockets through"
        return [failed("WebSocket", str(error) or f"no connection within {CONNECT_LIMIT:g} s", advice)], None
    finally:
        await unknown.aclose()
        await http.aclose()


async def _talk(api: RpcAgentApi) -> tuple[list[Finding], tailnet.DERPMap | None]:
    found = [
        ok("WebSocket", "opened"),
        ok("token", "the server knows this agent"),
        ok("API version", f"{api.version} (agent {VERSION})"),
    ]
    try:
        manifest = await api.call(GET_MANIFEST, pb.GetManifestRequest(), timeout=REQUEST_LIMIT)
    except CallError as error:
        return [*found, failed("manifest", str(error), "the server's log may say more")], None
    return found, manifest.derp_map


def _refused(error: RefusedError) -> Finding:
    if error.status in (401, 403):
        return failed(
            "token",
            str(error),
            "the token belongs to no agent of a current build: restart the workspace, or write the new token",
        )
    return failed("WebSocket", str(error), "a proxy in between may not let WebSockets through")
