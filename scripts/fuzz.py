"""Runs the fuzz targets of `fuzz_parts`, each in a process of its own (`scripts/fuzz` says how to call it).

A part is a module with `seeds()`, which gives inputs to begin with, and `target(data)`, which raises where something is
wrong. A target that takes longer than `SLOW` seconds or more memory than `MEMORY` is a finding, too.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import click

SCRIPTS = Path(__file__).resolve().parent
STATE = SCRIPTS.parent / ".fuzz"
SLOW = 5
"""Seconds for one input, instrumented: some ten times of what it takes otherwise."""
MEMORY = 700
"""MiB of a fuzzing process."""
MAX_INPUT = 8192
PARTS = sorted(path.stem for path in (SCRIPTS / "fuzz_parts").glob("[a-z]*.py"))


@click.command()
@click.argument("part", required=False, type=click.Choice(PARTS))
@click.option("--minutes", type=float, default=1.0, show_default=True, help="For each part.")
@click.option("--replay", type=click.Path(exists=True, dir_okay=False), help="Run one input again.")
@click.option("--child", is_flag=True, hidden=True)
def main(part: str | None, minutes: float, replay: str | None, child: bool) -> None:
    """Search one part, or all, for input that breaks it."""
    if child or replay is not None:
        if part is None:
            raise click.UsageError("which part is the input of?")
        _fuzz(part, replay, minutes)
        return
    broken = [name for name in ([part] if part else PARTS) if not _run(name, minutes)]
    if broken:
        click.echo(f"findings in {STATE / 'findings'} of: {', '.join(broken)}")
        sys.exit(1)


def _run(part: str, minutes: float) -> bool:
    """Whether a part was searched without a finding."""
    command = [sys.executable, __file__, part, "--child", f"--minutes={minutes}"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = ended.stdout.splitlines()
    summary = next((line for line in reversed(lines) if line.startswith("Done ")), "")
    click.echo(f"{part}: {summary or f'ended with status {ended.returncode}'}")
    if ended.returncode:
        click.echo("\n".join(lines[-60:]))
    return ended.returncode == 0


def _fuzz(part: str, replay: str | None, minutes: float) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris  # the extra `fuzz`; the parent needs it not

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["agent"]):
        module = importlib.import_module(f"fuzz_parts.{part}")
    corpus, findings = STATE / "corpus" / part, STATE / "findings"
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(module.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={round(minutes * 60)}",
        f"-timeout={SLOW}",
        f"-rss_limit_mb={MEMORY}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix={findings}/{part}-",
    ]
    atheris.Setup([sys.argv[0], *([replay] if replay is not None else [*options, str(corpus)])], module.target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
