"""The targets of `scripts/fuzz` stay in step with the code: their seeds, and a little around them, find nothing."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
PARTS = sorted(path.stem for path in (SCRIPTS / "fuzz_parts").glob("[a-z]*.py"))


@pytest.mark.parametrize("part", PARTS)
def test_targets_take_their_seeds(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module(f"fuzz_parts.{part}")
    chance = random.Random(part)
    seeds = list(module.seeds())
    assert seeds
    for seed in seeds:
        module.target(seed)
        for _ in range(5):
            changed = bytearray(seed + chance.choice(seeds))
            changed[chance.randrange(len(changed))] = chance.randrange(256)
            module.target(bytes(changed))
