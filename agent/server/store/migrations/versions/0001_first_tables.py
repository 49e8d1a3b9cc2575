"""First tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent.server.store import columns

revision = "0001"
down_revision = None


def upgrade() -> None:

    op.create_table(
        "external_auth_providers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("regex", sa.Text(), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_external_auth_providers")),
    )
    op.create_table(
        "settings",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "users",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("username", sa.String(length=32), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=True),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=10), nullable=False),
        sa.Column("user_id", columns.UuidType(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("login_type", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("lifetime_seconds", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_keys_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_api_keys_user_id"), ["user_id"], unique=False)
        batch_op.create_index(
            "uq_api_keys_user_id_name",
            ["user_id", "name"],
            unique=True,
            sqlite_where=sa.text("name <> ''"),
            postgresql_where=sa.text("name <> ''"),
        )

    op.create_table(
        "external_auth_links",
        sa.Column("user_id", columns.UuidType(), nullable=False),
        sa.Column("provider_id", sa.String(length=64), nullable=False),
        sa.Column("access_token", sa.Text(), nullable=False),
        sa.Column("token_extra", sa.JSON(), nullable=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider_id"],
            ["external_auth_providers.id"],
            name=op.f("fk_external_auth_links_provider_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_external_auth_links_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "provider_id", name=op.f("pk_external_auth_links")),
    )
    op.create_table(
        "git_ssh_keys",
        sa.Column("user_id", columns.UuidType(), nullable=False),
        sa.Column("private_key", sa.Text(), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_git_ssh_keys_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_git_ssh_keys")),
    )
    op.create_table(
        "one_time_logins",
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", columns.UuidType(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_one_time_logins_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_one_time_logins")),
    )
    with op.batch_alter_table("one_time_logins", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_one_time_logins_user_id"), ["user_id"], unique=False)

    op.create_table(
        "workspaces",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("owner_id", columns.UuidType(), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name=op.f("fk_workspaces_owner_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspaces")),
    )
    with op.batch_alter_table("workspaces", schema=None) as batch_op:
        batch_op.create_index(
            "uq_workspaces_owner_id_name",
            ["owner_id", "name"],
            unique=True,
            sqlite_where=sa.text("NOT deleted"),
            postgresql_where=sa.text("NOT deleted"),
        )

    op.create_table(
        "builds",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("workspace_id", columns.UuidType(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("transition", sa.String(length=8), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspaces.id"], name=op.f("fk_builds_workspace_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_builds")),
        sa.UniqueConstraint("workspace_id", "number", name=op.f("uq_builds_workspace_id_number")),
    )
    open_builds = sa.text("status IN ('pending', 'running')")
    op.create_index("ix_builds_status", "builds", ["status"], sqlite_where=open_builds, postgresql_where=open_builds)
    op.create_table(
        "agents",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("build_id", columns.UuidType(), nullable=False),
        sa.Column("resource_id", columns.UuidType(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("instance_id", sa.String(length=128), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("connection_id", columns.UuidType(), nullable=True),
        sa.Column("first_connected_at", sa.BigInteger(), nullable=True),
        sa.Column("last_connected_at", sa.BigInteger(), nullable=True),
        sa.Column("disconnected_at", sa.BigInteger(), nullable=True),
        sa.Column("lifecycle_state", sa.String(length=24), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ready_at", sa.BigInteger(), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("api_version", sa.String(length=16), nullable=False),
        sa.Column("expanded_directory", sa.Text(), nullable=False),
        sa.Column("subsystems", sa.JSON(), nullable=False),
        sa.Column("logs_length", sa.BigInteger(), nullable=False),
        sa.Column("logs_overflowed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name=op.f("fk_agents_build_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_agents_token_hash")),
    )
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agents_build_id"), ["build_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agents_instance_id"), ["instance_id"], unique=False)

    op.create_table(
        "agent_stats",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("connections_by_proto", sa.JSON(), nullable=False),
        sa.Column("connection_count", sa.BigInteger(), nullable=False),
        sa.Column("connection_median_latency_ms", sa.Double(), nullable=False),
        sa.Column("rx_packets", sa.BigInteger(), nullable=False),
        sa.Column("rx_bytes", sa.BigInteger(), nullable=False),
        sa.Column("tx_packets", sa.BigInteger(), nullable=False),
        sa.Column("tx_bytes", sa.BigInteger(), nullable=False),
        sa.Column("session_count_vscode", sa.BigInteger(), nullable=False),
        sa.Column("session_count_jetbrains", sa.BigInteger(), nullable=False),
        sa.Column("session_count_reconnecting_pty", sa.BigInteger(), nullable=False),
        sa.Column("session_count_ssh", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_agent_stats_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_stats")),
    )
    with op.batch_alter_table("agent_stats", schema=None) as batch_op:
        batch_op.create_index("ix_agent_stats_agent_id_id", ["agent_id", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agent_stats_created_at"), ["created_at"], unique=False)

    op.create_table(
        "apps",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("command", sa.Text(), nullable=False),
        sa.Column("icon", sa.Text(), nullable=False),
        sa.Column("group", sa.String(length=64), nullable=False),
        sa.Column("external", sa.Boolean(), nullable=False),
        sa.Column("subdomain", sa.Boolean(), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("open_in", sa.String(length=16), nullable=False),
        sa.Column("sharing_level", sa.String(length=16), nullable=False),
        sa.Column("healthcheck_url", sa.Text(), nullable=False),
        sa.Column("healthcheck_interval", sa.Integer(), nullable=False),
        sa.Column("healthcheck_threshold", sa.Integer(), nullable=False),
        sa.Column("health", sa.String(length=16), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_apps_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_apps")),
        sa.UniqueConstraint("agent_id", "slug", name=op.f("uq_apps_agent_id_slug")),
    )
    op.create_table(
        "connections",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("type", sa.String(length=24), nullable=False),
        sa.Column("ip", sa.String(length=64), nullable=True),
        sa.Column("connected_at", sa.BigInteger(), nullable=True),
        sa.Column("disconnected_at", sa.BigInteger(), nullable=True),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_connections_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "id", name=op.f("pk_connections")),
    )
    op.create_table(
        "log_sources",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("display_name", sa.String(length=127), nullable=False),
        sa.Column("icon", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_log_sources_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "id", name=op.f("pk_log_sources")),
    )
    op.create_table(
        "log_spools",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("source_id", columns.UuidType(), nullable=False),
        sa.Column("spool_id", columns.UuidType(), nullable=False),
        sa.Column("next_sequence", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_log_spools_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "source_id", "spool_id", name=op.f("pk_log_spools")),
    )
    op.create_table(
        "logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("source_id", columns.UuidType(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_logs_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_logs")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("logs", schema=None) as batch_op:
        batch_op.create_index("ix_logs_agent_id_id", ["agent_id", "id"], unique=False)

    op.create_table(
        "metadata",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("key", sa.String(length=127), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("script", sa.Text(), nullable=False),
        sa.Column("interval", sa.BigInteger(), nullable=False),
        sa.Column("timeout", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("collected_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_metadata_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("agent_id", "key", name=op.f("pk_metadata")),
    )
    op.create_table(
        "resource_datapoints",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("collected_at", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=True),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_resource_datapoints_agent_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "path", "collected_at", name=op.f("pk_resource_datapoints")),
    )
    op.create_table(
        "resource_monitors",
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("path", sa.String(length=512), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("threshold", sa.Integer(), nullable=False),
        sa.Column("alert", sa.Boolean(), nullable=False),
        sa.Column("changed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_resource_monitors_agent_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("agent_id", "path", name=op.f("pk_resource_monitors")),
    )
    op.create_table(
        "scripts",
        sa.Column("id", columns.UuidType(), nullable=False),
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("log_source_id", columns.UuidType(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("display_name", sa.String(length=128), nullable=False),
        sa.Column("script", sa.Text(), nullable=False),
        sa.Column("log_path", sa.Text(), nullable=False),
        sa.Column("cron", sa.Text(), nullable=False),
        sa.Column("run_on_start", sa.Boolean(), nullable=False),
        sa.Column("run_on_stop", sa.Boolean(), nullable=False),
        sa.Column("start_blocks_login", sa.Boolean(), nullable=False),
        sa.Column("timeout_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_scripts_agent_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scripts")),
    )
    with op.batch_alter_table("scripts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scripts_agent_id"), ["agent_id"], unique=False)

    op.create_table(
        "script_timings",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("script_id", columns.UuidType(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=8), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.ForeignKeyConstraint(
            ["script_id"], ["scripts.id"], name=op.f("fk_script_timings_script_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_script_timings")),
    )
    with op.batch_alter_table("script_timings", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_script_timings_script_id"), ["script_id"], unique=False)


def downgrade() -> None:

    with op.batch_alter_table("script_timings", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_script_timings_script_id"))

    op.drop_table("script_timings")
    with op.batch_alter_table("scripts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_scripts_agent_id"))

    op.drop_table("scripts")
    op.drop_table("resource_monitors")
    op.drop_table("resource_datapoints")
    op.drop_table("metadata")
    with op.batch_alter_table("logs", schema=None) as batch_op:
        batch_op.drop_index("ix_logs_agent_id_id")

    op.drop_table("logs")
    op.drop_table("log_spools")
    op.drop_table("log_sources")
    op.drop_table("connections")
    op.drop_table("apps")
    with op.batch_alter_table("agent_stats", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agent_stats_created_at"))
        batch_op.drop_index("ix_agent_stats_agent_id_id")

    op.drop_table("agent_stats")
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agents_instance_id"))
        batch_op.drop_index(batch_op.f("ix_agents_build_id"))

    op.drop_table("agents")
    op.drop_table("builds")
    with op.batch_alter_table("workspaces", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_workspaces_owner_id_name", sqlite_where=sa.text("NOT deleted"), postgresql_where=sa.text("NOT deleted")
        )

    op.drop_table("workspaces")
    with op.batch_alter_table("one_time_logins", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_one_time_logins_user_id"))

    op.drop_table("one_time_logins")
    op.drop_table("git_ssh_keys")
    op.drop_table("external_auth_links")
    with op.batch_alter_table("api_keys", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_api_keys_user_id_name", sqlite_where=sa.text("name <> ''"), postgresql_where=sa.text("name <> ''")
        )
        batch_op.drop_index(batch_op.f("ix_api_keys_user_id"))

    op.drop_table("api_keys")
    op.drop_table("users")
    op.drop_table("settings")
    op.drop_table("external_auth_providers")
