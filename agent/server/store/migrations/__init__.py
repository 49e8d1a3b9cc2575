"""How an older database becomes one of this version: the steps in `versions`, run by Alembic.

A new step is made with `python -m agent.server.store.migrations "What it does"`, then read and mended by hand.
"""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def load() -> ScriptDirectory:
    """The steps, read from their files. Blocks; everything after it does not."""
    scripts = ScriptDirectory(str(Path(__file__).parent))
    scripts.get_heads()  # reads them all
    return scripts


def upgrade(connection: Connection, scripts: ScriptDirectory) -> None:
    """Run the steps that are missing, in the transaction of the caller. Raises `alembic.util.CommandError`."""

    def missing(revision: str | tuple[str, ...], _context: MigrationContext) -> list[RevisionStep]:
        return scripts._upgrade_revs("head", revision)  # type: ignore[arg-type] # as Alembic's own command

    environment = EnvironmentContext(Config(), scripts, fn=missing, destination_rev="head")
    with environment:
        environment.configure(connection=connection)
        environment.run_migrations()
