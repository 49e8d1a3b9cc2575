"""Composition: which part gets which; and a server from its start to its end."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import structlog
from aiohttp import web

from agent.clock import Clock
from agent.server import open_files
from agent.server.agent_ports import AgentPorts
from agent.server.agent_rpc.service import Settings
from agent.server.agent_rpc.surroundings import AgentSurroundings
from agent.server.api.agent_logs import AgentLogs
from agent.server.api.agent_me import AgentMe
from agent.server.api.agent_metadata import AgentMetadata
from agent.server.api.agent_rpc import AgentRpc
from agent.server.api.agents import Agents
from agent.server.api.appearance import Appearance
from agent.server.api.buildinfo import BuildInfo
from agent.server.api.containers import Containers
from agent.server.api.derp import Derp
from agent.server.api.external_auth import ExternalAuth
from agent.server.api.instance_identity import InstanceIdentity, identity_tokens
from agent.server.api.listening_ports import ListeningPorts
from agent.server.api.ports import Ports
from agent.server.api.pty import Pty
from agent.server.api.tailnet import Tailnet
from agent.server.api.users import Users
from agent.server.api.watch import Watch
from agent.server.api.workspaces import Workspaces
from agent.server.auth import Authenticator, Passwords
from agent.server.config import ServerConfig
from agent.server.coordinator import Coordinator
from agent.server.derp_map import DerpMaps, DerpOptions
from agent.server.events import Events, PostgresRelay, agent_topic, metadata_topic
from agent.server.housekeeping import Housekeeping
from agent.server.http import Front
from agent.server.identity import IdentityConfig, Verifiers, read_config
from agent.server.identity.fetch import HttpGet
from agent.server.jobs import keep_running
from agent.server.listening import bind, serving
from agent.server.longlived import LongLived
from agent.server.metadata_writer import MetadataWriter
from agent.server.monitor import ConnectionMonitor
from agent.server.network import AgentNetwork
from agent.server.openapi import OpenApi
from agent.server.page import Page
from agent.server.ports import (
    ListenerOrigins,
    PortOrigins,
    PortProxy,
    WildcardOrigins,
    by_host,
    leave_as_is,
    open_access,
)
from agent.server.relay import Relay
from agent.server.store import Database, open_database, settings, users
from agent.server.store.presence import PresenceStore
from agent.server.store.schema import User
from agent.server.stun import open_stun_responder
from agent.server.tailnet_rpc.resume import resume_tokens
from agent.server.tailnet_rpc.service import TailnetService
from agent.version import COMPATIBLE, VERSION

log = structlog.get_logger("agent.server")


class ListenError(Exception):
    """The address cannot be listened on; the text says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A control plane whose database is open: `app` serves it, `login_link` lets its first owner in.

    `network` reaches the agents that are connected to it while `app` runs.
    """

    app: web.Application
    login_link: Callable[[], Awaitable[str]]
    network: AgentNetwork


@asynccontextmanager
async def open_server(config: ServerConfig, clock: Clock, access_url: str, own_url: str = "") -> AsyncIterator[Server]:
    """Everything but the listening, for as long as the body runs. Raises `agent.server.store.DatabaseError`,
    `agent.server.derp_map.DerpMapFileError`, `agent.server.identity.IdentityConfigError`.

    `access_url` is where agents and browsers find the server, without a slash at the end; `own_url` where this process
    finds its own listening socket, if that is another one.
    """
    events = Events()
    options = DerpOptions(config.derp_map, config.stun_port, config.disable_direct, config.force_websockets)
    derp_maps = DerpMaps(access_url, options, events, clock)
    await derp_maps.load()
    database = await open_database(config.database_url)
    presence = PresenceStore(database, lambda: clock.wall() // 1000, lambda agent: events.publish(agent_topic(agent)))
    monitor = ConnectionMonitor(presence, clock, config.ping_period)
    housekeeping = Housekeeping(database, events, clock, stop_limit=config.stop_limit, retention=config.retention)
    metadata = MetadataWriter(database, clock, lambda agent: events.publish(metadata_topic(agent)))
    relay = Relay(clock)
    jobs = {
        "relay": relay.run,
        "connection monitor": monitor.run,
        "metadata": metadata.run,
        "housekeeping": housekeeping.run,
    }
    if config.derp_map is not None:
        jobs["DERP map"] = derp_maps.run
    if database.dialect == "postgresql":
        events.relay = PostgresRelay(events, database.connect_arguments(), clock)
        jobs["events of other replicas"] = events.relay.run
    tasks = [asyncio.create_task(keep_running(name, job, clock), name=name) for name, job in jobs.items()]
    try:
        own_url = own_url or access_url
        yield await _compose(config, clock, access_url, own_url, database, events, monitor, metadata, relay, derp_maps)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await database.aclose()


async def _compose(
    config: ServerConfig,
    clock: Clock,
    access_url: str,
    own_url: str,
    database: Database,
    events: Events,
    monitor: ConnectionMonitor,
    metadata: MetadataWriter,
    relay: Relay,
    derp_maps: DerpMaps,
) -> Server:
    async with database.transaction(exclusive=True) as session:
        deployment_id = await settings.deployment_id(session)
    authenticator = Authenticator(database, clock, config.session_lifetime)
    people = Users(
        database,
        Passwords(),
        clock,
        access_url=access_url,
        session_lifetime=config.session_lifetime,
        link_lifetime=config.login_link_lifetime,
    )
    build_info = BuildInfo(
        version=VERSION, access_url=access_url, api_version=config.api_version, deployment_id=deployment_id
    )
    service = Settings(log_limit=config.agent_log_limit, report_interval=config.stats_interval)
    around = AgentSurroundings(database, events, clock, service, metadata, derp_maps)
    long_lived, terminals = LongLived(), LongLived()
    coordinator, tokens = Coordinator(), await resume_tokens(database)
    tailnet = TailnetService(coordinator, derp_maps, tokens, database, events, clock)
    network = AgentNetwork(coordinator, derp_maps, events, clock, own_url=own_url)
    agent_ports = AgentPorts(network, clock)
    access = await open_access(database, clock)
    proxy = PortProxy(access, network, long_lived, clock, access_url)
    wildcard = WildcardOrigins(config.workspace_url) if config.workspace_url else None
    origins: PortOrigins = wildcard or ListenerOrigins(
        proxy.serve, clock, address=config.address, port=urlsplit(own_url).port or 80, access_url=access_url
    )
    managed = Agents(database, events, clock, coordinator, derp_maps)
    watch = Watch(database, events, long_lived, network, managed, clock)
    parts = (
        build_info,
        people,
        managed,
        watch,
        Workspaces(database, events, long_lived, managed, watch, clock),
        Containers(database, clock),
        Pty(database, network, terminals, clock),
        ListeningPorts(database, agent_ports, clock),
        Ports(database, events, long_lived, agent_ports, access, origins, clock),
        InstanceIdentity(await _verifiers(config, clock), await identity_tokens(database), database, events, clock),
        AgentMe(database, events, clock, config.agent_log_limit),
        AgentRpc(around, tailnet, monitor, long_lived, clock, config.api_version),
        AgentLogs(database, events, clock, long_lived),
        AgentMetadata(database, events, clock, long_lived),
        ExternalAuth(database, events, clock, long_lived, access_url),
        Appearance(database),
        Derp(relay, long_lived, clock),
        Tailnet(tailnet, derp_maps, tokens, database, events, long_lived, clock, config.api_version),
        Page(people),
    )
    described = OpenApi([route for part in parts for route in part.routes()], VERSION)
    # Hosts of workspaces come first: nothing of what follows is meant for them.
    app = web.Application(middlewares=[by_host(wildcard, proxy)] if wildcard is not None else ())
    app.on_response_prepare.append(leave_as_is)
    front = Front(authenticator, clock, build_version=COMPATIBLE, access_url=access_url, rate_limit=config.rate_limit)
    front.install(app, described.routes)

    async def close_long_lived(_app: web.Application) -> None:
        # Their clients are told that the server goes away, not that the agent has; and the relay ends last.
        await terminals.aclose()
        await network.aclose()
        await tailnet.aclose()
        await long_lived.aclose()
        await origins.aclose()
        await proxy.aclose()

    app.on_shutdown.append(close_long_lived)

    async def login_link() -> str:
        return (await people.new_link(await _first_owner(database, clock))).url

    return Server(app, login_link, network)


async def _verifiers(config: ServerConfig, clock: Clock) -> Verifiers:
    identity = IdentityConfig() if config.identity is None else await asyncio.to_thread(read_config, config.identity)
    verifiers = Verifiers(identity, HttpGet(public=True), HttpGet(public=False), clock)
    await verifiers.check_config()
    return verifiers


async def _first_owner(database: Database, clock: Clock) -> UUID:
    """The id of the owner who was there first; made when there is no user at all."""
    now = clock.wall() // 1000
    async with database.transaction(exclusive=True) as session:
        owners = [user for user in await users.all_users(session) if user.role == "owner"]
        if owners:
            return min(owners, key=lambda user: user.created_at).id
        admin = User(
            id=uuid4(), username="admin", email="admin@localhost", role="owner", created_at=now, updated_at=now
        )
        await users.add(session, admin)
        return admin.id


def listen(config: ServerConfig) -> socket.socket:
    """A bound socket. The default port gives way to a free one where it is taken. Raises `ListenError`."""
    ports = [config.port] if config.port_is_fixed or config.port == 0 else [config.port, 0]
    for port in ports:
        try:
            return bind(config.address, port)
        except socket.gaierror as error:
            raise ListenError(f"address {config.address!r} is not known: {error.strerror}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port != ports[-1]:
                continue
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ListenError(f"cannot listen on {config.address} port {port}: {reason.lower()}") from error
    raise AssertionError("the last port returns or raises")


async def _open_stun(address: str, port: int, clock: Clock) -> asyncio.DatagramTransport:
    try:
        return await open_stun_responder(address, port, clock)
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        raise ListenError(f"cannot answer STUN on {address} UDP port {port}: {reason}") from error


def url_of(bound: socket.socket) -> str:
    """How this machine reaches the socket."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(config: ServerConfig, clock: Clock, say: Callable[[str], None], *, print_login: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; the second one ends the process at once. `say` gets what people wait for.

    Raises `ListenError`, `agent.server.store.DatabaseError`, `agent.server.derp_map.DerpMapFileError` and
    `agent.server.identity.IdentityConfigError`.
    """
    await asyncio.to_thread(config.data_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
    bound = await asyncio.to_thread(listen, config)
    with bound:
        access_url = (config.access_url or url_of(bound)).rstrip("/")
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(open_files.LoopErrors(clock))
        open_files.allow_many()

        def interrupt() -> None:
            if stop.is_set():
                os._exit(130)
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(open_server(config, clock, access_url, url_of(bound)))
            # What is there now stays: the collector need not look at it again and again, which stops everything for
            # more than a tenth of a second each time.
            gc.collect()
            gc.freeze()
            await stack.enter_async_context(serving(server.app, bound))
            say(f"listening on {url_of(bound)}")
            if config.stun_port is not None:
                stun = await _open_stun(config.address, config.stun_port, clock)
                stack.callback(stun.close)
                say(f"answering STUN on UDP port {stun.get_extra_info('sockname')[1]}")
            if access_url != url_of(bound):
                say(f"agents and browsers reach it at {access_url}")
            if print_login:
                say(f"log in at {await server.login_link()}")
            await stop.wait()
            log.info("stopping")
