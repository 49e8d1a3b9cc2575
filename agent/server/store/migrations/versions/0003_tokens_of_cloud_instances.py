"""Tokens of cloud instances

Columns and an index are added one by one, and may be NULL: SQLite would otherwise copy the table, and dropping the old
one would take along everything that belongs to agents.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("agents", sa.Column("identity_token_hash", sa.LargeBinary(), nullable=True))
    op.add_column("agents", sa.Column("identity_cloud", sa.String(length=8), nullable=True))
    op.add_column("agents", sa.Column("identity_verified_at", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_agents_identity_token_hash"), "agents", ["identity_token_hash"], unique=True)


def downgrade() -> None:
    op.drop_index(op.f("ix_agents_identity_token_hash"), table_name="agents")
    op.drop_column("agents", "identity_verified_at")
    op.drop_column("agents", "identity_cloud")
    op.drop_column("agents", "identity_token_hash")
