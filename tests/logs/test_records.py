"""The bytes of records and requests."""

from __future__ import annotations

from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from agent.api.proto import agent_pb2 as pb
from agent.logs.records import (
    LINE_OVERHEAD,
    RECORD_BUDGET,
    Record,
    RunPosition,
    StreamPosition,
    cut,
    encode_lines,
    encode_request,
    pack,
    torn,
    unpack,
)

_SOURCE = UUID("3b579bf4-1ed8-4b99-87a8-e9a1e3410410")
_U63 = st.integers(0, 2**63)
_STREAM = st.builds(StreamPosition, _U63, st.integers(0, 2**31), st.booleans())
_POSITION = st.builds(RunPosition, st.uuids(), _STREAM, _STREAM, _U63)
_RECORD = st.builds(
    Record, _U63, _U63, st.integers(0, 2**31), st.integers(0, 2**31), st.none() | _POSITION, st.binary(max_size=40)
)


def test_the_example_of_the_specification() -> None:
    # §8.7
    expected = bytes.fromhex("0a103b579bf41ed84b9987a8e9a1e3410410 12170a0c08d1a191b9061080cab5ee01120568656c6c6f1803")
    payload = encode_lines([b"hello"], pb.Log.INFO, 1_730_433_233_500_000_000)
    assert encode_request(_SOURCE, bytes(16), 1, [payload]).startswith(expected)


@given(
    st.lists(st.text(max_size=300), max_size=10),
    st.integers(1, 5),
    st.integers(0, 2**62),
    st.binary(min_size=16, max_size=16),
    st.integers(1, 2**63),
)
def test_hand_made_requests_are_what_protobuf_makes(
    lines: list[str], level: int, wall: int, spool_id: bytes, first: int
) -> None:
    created = Timestamp(seconds=wall // 10**9, nanos=wall % 10**9)
    expected = pb.BatchCreateLogsRequest(
        log_source_id=_SOURCE.bytes,
        logs=[pb.Log(created_at=created, output=line, level=pb.Log.Level.ValueType(level)) for line in lines],
        spool_id=spool_id,
        first_sequence=first,
    )
    encoded = encode_lines([line.encode() for line in lines], level, wall)
    assert encode_request(_SOURCE, spool_id, first, [encoded]) == expected.SerializeToString(deterministic=True)


@given(st.lists(_RECORD), st.binary(max_size=30))
def test_records_come_back_and_a_torn_end_is_ignored(records: list[Record], rest: bytes) -> None:
    packed = [pack(record) for record in records]
    found = list(unpack(b"".join(packed) + rest[:7]))
    assert [record for record, _ in found] == records
    assert [offset for _, offset in found] == [len(b"".join(packed[: n + 1])) for n in range(len(packed))]
    if packed:
        whole = b"".join(packed)
        for end in {len(whole) - 1, len(whole) - len(packed[-1]) // 2, len(whole) - len(packed[-1])}:
            assert [record for record, _ in unpack(whole[:end])] == records[:-1]


def test_records_that_belong_together_count_together() -> None:
    one, two, three = (Record(n, 0, 1, 5, None, b"12345") for n in (1, 2, 3))
    data = pack(one) + pack(two, belongs_to_next=True)
    assert [record for record, _ in unpack(data)] == [one]
    for end in range(len(pack(three))):
        assert torn(data + pack(three)[:end], len(pack(one)))
    assert torn(data + bytes(100), len(pack(one)))
    assert not torn(data + pack(three)[:8] + bytes(200), len(pack(one)))
    assert [record for record, _ in unpack(data + pack(three))] == [one, two, three]


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_records_and_no_trouble(data: bytes) -> None:
    assert list(unpack(data)) == []


@given(st.lists(st.integers(0, 70_000).map(bytes), max_size=12))
def test_records_are_cut_near_their_budget(lines: list[bytes]) -> None:
    groups = list(cut(lines))
    assert [line for group in groups for line in group] == lines
    for group in groups:
        assert len(group) == 1 or sum(map(len, group)) + LINE_OVERHEAD * len(group) <= RECORD_BUDGET
