"""Rows in messages of bounded size (agent-api.md §3.6)."""

from __future__ import annotations

import json
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from agent.server.log_frames import MAX_MESSAGE, encode_rows, frames, text_lines
from agent.server.store.logs import LogRow

SOURCE = UUID("2b1c7e04-88cc-49f2-b984-7890618f83c6")
ROW = LogRow(7, 1_730_433_233_500_000, 5, SOURCE, "<b>&\u2028")


def test_one_row() -> None:
    assert list(encode_rows([ROW])) == [
        b'{"id":7,"created_at":"2024-11-01T03:53:53.5Z","output":"\\u003cb\\u003e\\u0026\\u2028","level":"error",'
        b'"source_id":"2b1c7e04-88cc-49f2-b984-7890618f83c6"}'
    ]


def test_no_rows_no_frame() -> None:
    assert list(frames([])) == []


def test_the_largest_row_fits() -> None:
    [frame] = frames([ROW._replace(output="<" * 1024)])
    assert len(frame) < MAX_MESSAGE


@given(st.lists(st.text(max_size=1024), min_size=1, max_size=60))
def test_frames_are_bounded_and_complete(outputs: list[str]) -> None:
    rows = [ROW._replace(id=number, output=output) for number, output in enumerate(outputs)]
    made = list(frames(rows))
    assert all(len(frame.encode()) <= MAX_MESSAGE and frame.endswith("]\n") for frame in made)
    arrays = [json.loads(frame) for frame in made]
    assert all(arrays)
    assert [row["output"] for array in arrays for row in array] == outputs


def test_full_frames() -> None:
    made = list(frames(ROW._replace(output="x" * 300) for _ in range(1000)))
    assert all(len(frame) > MAX_MESSAGE - 600 for frame in made[:-1])


def test_text() -> None:
    rows = [ROW, ROW._replace(source_id=UUID(int=0), output="x")]
    assert list(text_lines(rows, "main", {SOURCE: "Startup"})) == [
        "2024-11-01T03:53:53Z [error] [agent.main|Startup] <b>&\u2028\n",
        "2024-11-01T03:53:53Z [error] [agent.main] x\n",
    ]
    assert next(text_lines(rows, "", {})).startswith("2024-11-01T03:53:53Z [error] [agent] ")
