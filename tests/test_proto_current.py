"""The checked-in protobuf code is what the .proto files beside it give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROTO = Path("agent/api/proto")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("proto")
    command = [ROOT / "scripts/generate-proto", output]
    result = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return output / PROTO


def test_generated_code_is_current(generated: Path) -> None:
    checked_in = {path.name: path.read_text() for path in (ROOT / PROTO).glob("*_pb2.py*")}
    assert {path.name: path.read_text() for path in generated.iterdir()} == checked_in, "run scripts/generate-proto"
