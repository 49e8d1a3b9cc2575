"""Tickets for ports of workspaces"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent.server.store import columns

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "port_tickets",
        sa.Column("code_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(length=10), nullable=False),
        sa.Column("agent_id", columns.UuidType(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name=op.f("fk_port_tickets_agent_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_port_tickets_key_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_port_tickets")),
    )
    with op.batch_alter_table("port_tickets", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_port_tickets_agent_id"), ["agent_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_port_tickets_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_port_tickets_key_id"), ["key_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("port_tickets", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_port_tickets_key_id"))
        batch_op.drop_index(batch_op.f("ix_port_tickets_expires_at"))
        batch_op.drop_index(batch_op.f("ix_port_tickets_agent_id"))

    op.drop_table("port_tickets")
