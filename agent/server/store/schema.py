"""The tables. Times are integers (`columns.Micros`), sizes are bytes, enumerations are the texts of the REST API unless
a comment says that the number of the protobuf enumeration is stored.

A change here wants a migration in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, MetaData, String, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from agent.server.store.columns import Micros, RowNumber, UuidType

Json = dict[str, object] | list[object]


class Base(DeclarativeBase):
    """Gives constraints names, so that a migration can refer to them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {UUID: UuidType, Json: JSON}  # noqa: RUF012 SQLAlchemy's own form


def _owned_by(column: str) -> ForeignKey:
    return ForeignKey(column, ondelete="CASCADE")


class Setting(Base):
    """One value that belongs to the whole deployment, by name: see `settings.py`."""

    __tablename__ = "settings"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[Json] = mapped_column()


# People


class User(Base):
    """Somebody who may log in. `role` is `owner` (everything) or `member` (own agents)."""

    __tablename__ = "users"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(32), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    name: Mapped[str] = mapped_column(String(128), default="")
    password_hash: Mapped[str | None] = mapped_column(String(255))  # argon2; NULL: only one-time logins
    role: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)
    last_seen_at: Mapped[int | None] = mapped_column(Micros)


class ApiKey(Base):
    """A session (after a login) or a token that a user made; the client holds `<id>-<secret>` (agent-api.md §1.1)."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(10), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(_owned_by("users.id"), index=True)
    secret_hash: Mapped[bytes] = mapped_column()  # SHA-256; the secret has over 128 bits of entropy
    login_type: Mapped[str] = mapped_column(String(16))  # password | token
    name: Mapped[str] = mapped_column(String(64))  # empty for sessions
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)
    last_used_at: Mapped[int] = mapped_column(Micros)
    expires_at: Mapped[int] = mapped_column(Micros)
    lifetime_seconds: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        Index(
            "uq_api_keys_user_id_name",
            "user_id",
            "name",
            unique=True,
            sqlite_where=text("name <> ''"),
            postgresql_where=text("name <> ''"),
        ),
    )


class OneTimeLogin(Base):
    """A login link that was handed out and not used yet; the row goes with its use."""

    __tablename__ = "one_time_logins"
    code_hash: Mapped[bytes] = mapped_column(primary_key=True)  # SHA-256
    user_id: Mapped[UUID] = mapped_column(_owned_by("users.id"), index=True)
    expires_at: Mapped[int] = mapped_column(Micros)


class PortTicket(Base):
    """Opens a port of a workspace in the browser; the row goes with its use, and with the key that it was made with."""

    __tablename__ = "port_tickets"
    code_hash: Mapped[bytes] = mapped_column(primary_key=True)  # SHA-256
    key_id: Mapped[str] = mapped_column(_owned_by("api_keys.id"), index=True)
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), index=True)
    port: Mapped[int] = mapped_column()
    expires_at: Mapped[int] = mapped_column(Micros, index=True)


class GitSshKey(Base):
    """The ed25519 key pair of a user, in OpenSSH's formats (agent-api.md §2.5)."""

    __tablename__ = "git_ssh_keys"
    user_id: Mapped[UUID] = mapped_column(_owned_by("users.id"), primary_key=True)
    private_key: Mapped[str] = mapped_column(Text)
    public_key: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(Micros)


class ExternalAuthProvider(Base):
    """A git host that workspaces may get tokens for. The last one whose `regex` matches wins (agent-api.md §2.4)."""

    __tablename__ = "external_auth_providers"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    regex: Mapped[str] = mapped_column(Text)
    display_name: Mapped[str] = mapped_column(String(128))
    position: Mapped[int] = mapped_column()
    created_at: Mapped[int] = mapped_column(Micros)


class ExternalAuthLink(Base):
    """The token of one user at one provider."""

    __tablename__ = "external_auth_links"
    user_id: Mapped[UUID] = mapped_column(_owned_by("users.id"), primary_key=True)
    provider_id: Mapped[str] = mapped_column(_owned_by("external_auth_providers.id"), primary_key=True)
    access_token: Mapped[str] = mapped_column(Text)
    token_extra: Mapped[Json | None] = mapped_column()
    expires_at: Mapped[int | None] = mapped_column(Micros)
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)


# Workspaces, their builds, and the agents of a build


class Workspace(Base):
    """What a definition describes. A deleted one keeps its row (its agents are refused) until it is purged."""

    __tablename__ = "workspaces"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    owner_id: Mapped[UUID] = mapped_column(_owned_by("users.id"))
    name: Mapped[str] = mapped_column(String(32))
    deleted: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)
    __table_args__ = (
        Index(
            "uq_workspaces_owner_id_name",
            "owner_id",
            "name",
            unique=True,
            sqlite_where=text("NOT deleted"),
            postgresql_where=text("NOT deleted"),
        ),
    )


_OPEN = "status IN ('pending', 'running')"


class Build(Base):
    """One transition of a workspace. Only the agents of the highest `number` may connect (agent-api.md §1.3)."""

    __tablename__ = "builds"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    workspace_id: Mapped[UUID] = mapped_column(_owned_by("workspaces.id"))
    number: Mapped[int] = mapped_column()
    transition: Mapped[str] = mapped_column(String(8))  # start | stop | delete
    status: Mapped[str] = mapped_column(String(16))  # pending | running | succeeded | failed
    error: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)
    completed_at: Mapped[int | None] = mapped_column(Micros)
    __table_args__ = (
        UniqueConstraint("workspace_id", "number"),
        Index("ix_builds_status", "status", sqlite_where=text(_OPEN), postgresql_where=text(_OPEN)),
    )


class Agent(Base):
    """One agent of one start build: what it was given, and what it reported."""

    __tablename__ = "agents"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    build_id: Mapped[UUID] = mapped_column(_owned_by("builds.id"), index=True)
    resource_id: Mapped[UUID] = mapped_column()
    name: Mapped[str] = mapped_column(String(64))
    token_hash: Mapped[bytes] = mapped_column(unique=True)  # SHA-256 of the token's 16 bytes
    instance_id: Mapped[str] = mapped_column(String(128), default="", index=True)
    identity_token_hash: Mapped[bytes | None] = mapped_column(index=True, unique=True)  # of what its instance gets
    identity_cloud: Mapped[str | None] = mapped_column(String(8))  # aws | azure | google: who vouched for it last
    identity_verified_at: Mapped[int | None] = mapped_column(Micros)
    definition: Mapped[Json] = mapped_column()  # `definition.AgentDefinition`, complete, with its secrets
    created_at: Mapped[int] = mapped_column(Micros)
    updated_at: Mapped[int] = mapped_column(Micros)

    connection_id: Mapped[UUID | None] = mapped_column()  # of the newest monitored connection; older ones write nothing
    first_connected_at: Mapped[int | None] = mapped_column(Micros)
    last_connected_at: Mapped[int | None] = mapped_column(Micros)
    disconnected_at: Mapped[int | None] = mapped_column(Micros)

    lifecycle_state: Mapped[str] = mapped_column(String(24), default="created")
    started_at: Mapped[int | None] = mapped_column(Micros)
    ready_at: Mapped[int | None] = mapped_column(Micros)

    version: Mapped[str] = mapped_column(String(128), default="")
    api_version: Mapped[str] = mapped_column(String(16), default="")
    expanded_directory: Mapped[str] = mapped_column(Text, default="")
    subsystems: Mapped[Json] = mapped_column(default=list)

    logs_length: Mapped[int] = mapped_column(BigInteger, default=0)
    logs_overflowed: Mapped[bool] = mapped_column(default=False)


class Script(Base):
    """A script of an agent, in the order of the definition (`position`)."""

    __tablename__ = "scripts"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), index=True)
    log_source_id: Mapped[UUID] = mapped_column()
    position: Mapped[int] = mapped_column()
    display_name: Mapped[str] = mapped_column(String(128))
    script: Mapped[str] = mapped_column(Text)
    log_path: Mapped[str] = mapped_column(Text)
    cron: Mapped[str] = mapped_column(Text)
    run_on_start: Mapped[bool] = mapped_column()
    run_on_stop: Mapped[bool] = mapped_column()
    start_blocks_login: Mapped[bool] = mapped_column()
    timeout_ns: Mapped[int] = mapped_column(BigInteger)  # 0: none


class ScriptTiming(Base):
    """One finished run of a script (agent-api.md §11.6)."""

    __tablename__ = "script_timings"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    script_id: Mapped[UUID] = mapped_column(_owned_by("scripts.id"), index=True)
    started_at: Mapped[int] = mapped_column(Micros)
    ended_at: Mapped[int] = mapped_column(Micros)
    exit_code: Mapped[int] = mapped_column()
    stage: Mapped[str] = mapped_column(String(8))  # start | stop | cron
    status: Mapped[str] = mapped_column(String(24))  # ok | exit_failure | timed_out | pipes_left_open


class App(Base):
    """A web application or command inside the workspace. `health` is the REST text; intervals are in seconds."""

    __tablename__ = "apps"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"))
    position: Mapped[int] = mapped_column()
    slug: Mapped[str] = mapped_column(String(64))
    display_name: Mapped[str] = mapped_column(String(128))
    url: Mapped[str] = mapped_column(Text)
    command: Mapped[str] = mapped_column(Text)
    icon: Mapped[str] = mapped_column(Text)
    group: Mapped[str] = mapped_column(String(64))
    external: Mapped[bool] = mapped_column()
    subdomain: Mapped[bool] = mapped_column()
    hidden: Mapped[bool] = mapped_column()
    open_in: Mapped[str] = mapped_column(String(16))  # slim-window | tab
    sharing_level: Mapped[str] = mapped_column(String(16))  # owner | authenticated | organization | public
    healthcheck_url: Mapped[str] = mapped_column(Text)
    healthcheck_interval: Mapped[int] = mapped_column()
    healthcheck_threshold: Mapped[int] = mapped_column()
    health: Mapped[str] = mapped_column(String(16))  # disabled | initializing | healthy | unhealthy
    __table_args__ = (UniqueConstraint("agent_id", "slug"),)


class Metadata(Base):
    """One metadata item: its description, and the last result (`collected_at` NULL: none yet). Durations: seconds."""

    __tablename__ = "metadata"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(127), primary_key=True)
    position: Mapped[int] = mapped_column()
    display_name: Mapped[str] = mapped_column(String(128))
    script: Mapped[str] = mapped_column(Text)
    interval: Mapped[int] = mapped_column(BigInteger)
    timeout: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[str] = mapped_column(Text, default="")
    error: Mapped[str] = mapped_column(Text, default="")
    collected_at: Mapped[int | None] = mapped_column(Micros)


class LogSource(Base):
    """Where log lines come from (agent-api.md §10.5). Lines may name a source that has no row."""

    __tablename__ = "log_sources"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[int] = mapped_column(Micros)
    display_name: Mapped[str] = mapped_column(String(127))
    icon: Mapped[str] = mapped_column(Text)


class Log(Base):
    """One line. Ids ascend in the order of storage within an agent and never come back: readers go on by them."""

    __tablename__ = "logs"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"))
    source_id: Mapped[UUID] = mapped_column()
    created_at: Mapped[int] = mapped_column(Micros)
    level: Mapped[int] = mapped_column()  # number of pb.Log.Level
    output: Mapped[str] = mapped_column(Text)
    __table_args__ = (Index("ix_logs_agent_id_id", "agent_id", "id"), {"sqlite_autoincrement": True})


class LogSpool(Base):
    """How far a spool of an agent was stored, so that a batch sent twice is stored once (agent.proto, extension)."""

    __tablename__ = "log_spools"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    source_id: Mapped[UUID] = mapped_column(primary_key=True)
    spool_id: Mapped[UUID] = mapped_column(primary_key=True)
    next_sequence: Mapped[int] = mapped_column(BigInteger)  # first one that is not stored yet
    updated_at: Mapped[int] = mapped_column(Micros)


class AgentStats(Base):
    """One stats report (agent-api.md §8.3)."""

    __tablename__ = "agent_stats"
    id: Mapped[int] = mapped_column(RowNumber, primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"))
    created_at: Mapped[int] = mapped_column(Micros, index=True)
    connections_by_proto: Mapped[Json] = mapped_column()
    connection_count: Mapped[int] = mapped_column(BigInteger)
    connection_median_latency_ms: Mapped[float] = mapped_column()
    rx_packets: Mapped[int] = mapped_column(BigInteger)
    rx_bytes: Mapped[int] = mapped_column(BigInteger)
    tx_packets: Mapped[int] = mapped_column(BigInteger)
    tx_bytes: Mapped[int] = mapped_column(BigInteger)
    session_count_vscode: Mapped[int] = mapped_column(BigInteger)
    session_count_jetbrains: Mapped[int] = mapped_column(BigInteger)
    session_count_reconnecting_pty: Mapped[int] = mapped_column(BigInteger)
    session_count_ssh: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("ix_agent_stats_agent_id_id", "agent_id", "id"),)


class ResourceMonitor(Base):
    """A threshold on memory (`path` empty) or on the volume at `path` (agent-api.md §11.7)."""

    __tablename__ = "resource_monitors"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    enabled: Mapped[bool] = mapped_column()
    threshold: Mapped[int] = mapped_column()  # percent
    alert: Mapped[bool] = mapped_column(default=False)
    changed_at: Mapped[int | None] = mapped_column(Micros)  # of `alert`


class ResourceDatapoint(Base):
    """One measurement of what a monitor watches, in bytes."""

    __tablename__ = "resource_datapoints"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    collected_at: Mapped[int] = mapped_column(Micros, primary_key=True)
    used: Mapped[int | None] = mapped_column(BigInteger)
    total: Mapped[int | None] = mapped_column(BigInteger)


class Connection(Base):
    """Somebody's session inside the workspace, as the agent reported it (agent-api.md §11.8)."""

    __tablename__ = "connections"
    agent_id: Mapped[UUID] = mapped_column(_owned_by("agents.id"), primary_key=True)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(24))  # ssh | vscode | jetbrains | reconnecting_pty
    ip: Mapped[str | None] = mapped_column(String(64))
    connected_at: Mapped[int | None] = mapped_column(Micros)
    disconnected_at: Mapped[int | None] = mapped_column(Micros)
    status_code: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None] = mapped_column(Text)
