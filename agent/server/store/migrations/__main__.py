"""Writes the next step: the difference between an up-to-date database and `schema.py`."""

from __future__ import annotations

import sys

from alembic.autogenerate import RevisionContext
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from agent.server.store.migrations import load, upgrade
from agent.server.store.schema import Base


def main(message: str) -> None:
    scripts = load()
    number = len(list(scripts.walk_revisions())) + 1
    config = Config()
    arguments = {
        "message": message,
        "rev_id": f"{number:04}",
        "head": "head",
        "autogenerate": True,
        "sql": False,
        "splice": False,
        "branch_label": None,
        "version_path": None,
        "depends_on": None,
    }
    revision = RevisionContext(config, scripts, arguments)
    with create_engine("sqlite://").begin() as connection:
        upgrade(connection, scripts)

        def compare(current: str, context: MigrationContext) -> list[object]:
            revision.run_autogenerate(current, context)
            return []

        environment = EnvironmentContext(config, scripts, fn=compare)
        with environment:
            environment.configure(
                connection=connection,
                target_metadata=Base.metadata,
                compare_type=True,
                render_as_batch=True,  # SQLite changes a table by copying it
                user_module_prefix="columns.",
            )
            environment.run_migrations()
    for script in revision.generate_scripts():
        print(script.path if script else "nothing to do")  # noqa: T201


main(*sys.argv[1:])
