"""Any way to cut a stream into pieces."""

from __future__ import annotations

from hypothesis import strategies as st


def chunkings() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 7), max_size=40)


def chunked(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]
