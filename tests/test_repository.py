"""Promises of the repository as a whole that no single room can keep."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [path for path in ROOT.glob("agent/**/*.py") if not path.name.endswith("_pb2.py")]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_stays_readable_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 700, "split it"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_commands_that_the_readme_names_exist() -> None:
    scripts = set(re.findall(r"\./(scripts/[\w-]+)", (ROOT / "README.md").read_text()))
    assert {"scripts/quickstart", "scripts/test"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} cannot be run"


def test_the_agent_starts_lean() -> None:
    """What the agent may need later, or never, neither delays its start nor stays in its memory."""
    heavy = {"sqlalchemy", "alembic", "argon2", "cryptography", "croniter", "psutil", "rich", "yaml"}
    code = f"import sys, agent.daemon.app, agent.cli.agent; print(*{heavy!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
