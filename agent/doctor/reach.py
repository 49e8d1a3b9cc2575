"""The way to the control plane, step by step: proxy, name, TCP, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from yarl import URL

from agent.clock import wait_for
from agent.doctor.finding import Finding, Subject, failed, ok, skipped, warning
from agent.proxy import ProxyError, proxy_for

STEP_LIMIT: Final = 5.0
"""Seconds for one step."""
SOON: Final = 14 * 86400
"""Seconds before the end of a certificate at which it is worth a word."""


def proxy(subject: Subject) -> tuple[Finding, URL | None]:
    """Which proxy is used; the second one is where TCP goes first, None if the variables make no sense."""
    try:
        found = proxy_for(subject.url, subject.environment)
    except ProxyError as error:
        advice = "correct HTTP_PROXY, HTTPS_PROXY and NO_PROXY in the agent's environment"
        return failed("proxy", str(error), advice), None
    if found is None:
        return ok("proxy", "none is used for this server"), subject.url
    return ok("proxy", f"{found.with_user(None)} is used"), found


async def name(subject: Subject, target: URL) -> Finding:
    """Whether the host's name means an address."""
    host = target.host or ""
    loop = asyncio.get_running_loop()
    try:
        asked = loop.getaddrinfo(host, target.port, type=socket.SOCK_STREAM)
        found = await wait_for(subject.clock, asked, STEP_LIMIT)
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no answer within {STEP_LIMIT:g} s"
        advice = "check CODER_AGENT_URL, /etc/resolv.conf, and whether this machine may ask a name server"
        return failed("DNS", f'"{host}": {reason}', advice)
    return ok("DNS", f"{host} is {', '.join(dict.fromkeys(str(entry[4][0]) for entry in found))}")


async def tcp(subject: Subject, target: URL) -> Finding:
    """Whether somebody answers there."""
    began = subject.clock.now()
    where = f"{target.host} port {target.port}"
    try:
        _, writer = await wait_for(subject.clock, asyncio.open_connection(target.host, target.port), STEP_LIMIT)
    except (OSError, TimeoutError) as error:
        reason = str(error) or f"no answer within {STEP_LIMIT:g} s"
        advice = "is the server running, and is there a firewall or a proxy that must be named in HTTPS_PROXY?"
        return failed("TCP", f"{where}: {reason}", advice)
    writer.transport.abort()
    return ok("TCP", f"{where} answers within {(subject.clock.now() - began) * 1e3:.0f} ms")


async def tls(subject: Subject, target: URL) -> Finding:
    """Whether the server's certificate is trusted here."""
    if subject.url.scheme != "https":
        return skipped("TLS", "the server is reached without TLS")
    if target != subject.url:
        return skipped("TLS", "it is spoken through the proxy; the request below shows whether it works")
    try:
        context = await asyncio.to_thread(ssl.create_default_context)
        _, writer = await wait_for(
            subject.clock, asyncio.open_connection(target.host, target.port, ssl=context), STEP_LIMIT
        )
    except ssl.SSLCertVerificationError as error:
        advice = "name a file with the issuer's certificate in SSL_CERT_FILE; check this machine's clock, too"
        return failed("TLS", f"the certificate is not trusted: {error.verify_message}", advice)
    except (OSError, TimeoutError) as error:
        advice = "is this really an HTTPS port?"
        return failed("TLS", str(error) or f"no answer within {STEP_LIMIT:g} s", advice)
    certificate = writer.get_extra_info("peercert") or {}
    version = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    ends = str(certificate.get("notAfter", ""))
    saw = f"{version}, certificate until {ends}"
    if ends and ssl.cert_time_to_seconds(ends) - subject.clock.wall() / 1e9 < SOON:
        return warning("TLS", saw, "renew the server's certificate: agents cannot connect when it has ended")
    return ok("TLS", saw)
