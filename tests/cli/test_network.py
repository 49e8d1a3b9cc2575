"""What the commands that reach agents make of what they measured."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from agent.cli import netcheck, ping, speedtest
from agent.cli.errors import CliError
from agent.tailnet.client import ConnectionInfo
from agent.tailnet.derp_map import DerpMap, Node, Region
from agent.tailnet.netinfo import NetInfo
from agent.tailnet.speedtest import Interval


def offered(*, disable_direct: bool = False) -> ConnectionInfo:
    regions = {
        number: Region(number, name=name, nodes=(Node(f"{number}a", number, f"{name}.example", stun_only=number == 3),))
        for number, name in ((1, "near"), (2, "far"), (3, "stun"))
    }
    return ConnectionInfo(DerpMap(MappingProxyType(regions)), disable_direct=disable_direct)


def test_relays_are_listed_nearest_first_and_the_silent_last() -> None:
    found = NetInfo(2, {"2-v4": 0.02, "2-v6": 0.01}, ipv6_socket=True)
    rows = netcheck.rows(offered(), found)
    assert [(row["name"], row["latency_v4_ms"], row["latency_v6_ms"], row["preferred"]) for row in rows] == [
        ("far", 20.0, 10.0, True),
        ("near", None, None, False),
    ]


@pytest.mark.parametrize(
    ("info", "disable_direct", "words"),
    [
        (NetInfo(0, {}, False, udp4=True), False, ["no relay answers: near (near.example:443), far (far.example:443)"]),
        (NetInfo(1, {"1-v4": 0.1}, False, udp4=True), False, ["these relays do not answer: far"]),
        (NetInfo(1, {"1-v4": 0.1, "2-v6": 1.0}, False, udp4=True, mapping_varies=False), False, []),
        (NetInfo(1, {"1-v4": 0.1, "2-v6": 1.0}, False, udp4=True, mapping_varies=True), False, ["the NAT here"]),
        (NetInfo(1, {"1-v4": 0.1, "2-v6": 1.0}, False, udp4=False), False, ["a firewall may block UDP"]),
        (NetInfo(1, {"1-v4": 0.1, "2-v6": 1.0}, False), False, ["names no STUN server"]),
        (NetInfo(1, {"1-v4": 0.1, "2-v6": 1.0}, False, udp4=False), True, ["the server forbids direct"]),
    ],
)
def test_what_stands_in_the_way_is_said_in_words(info: NetInfo, disable_direct: bool, words: list[str]) -> None:
    told = netcheck.advice(offered(disable_direct=disable_direct), info)
    assert len(told) == len(words)
    assert all(word in text for word, text in zip(words, told, strict=True))


def test_a_summary_counts_only_answers() -> None:
    relayed = {"latency_ms": 10.0, "via": "relay", "region_id": 1, "region": "near"}
    direct = {"latency_ms": 2.0, "via": "direct", "endpoint": "192.0.2.1:1"}
    lost = {"error": "no answer within 5 s"}
    summary = ping.summarise([relayed, lost, direct])
    assert summary == {"sent": 3, "received": 2, "min_ms": 2.0, "max_ms": 10.0, "avg_ms": 6.0, "direct": True}
    assert ping.summary_line(summary) == "3 sent, 2 answered, min/avg/max 2.0/6.0/10.0 ms; the connection is direct"
    assert ping.summary_line(ping.summarise([lost])) == "1 sent, 0 answered"
    assert ping.describe("dev", lost).count("no answer within 5 s") == 1
    assert "through the relay DERP(near) in 10.0 ms" in ping.describe("dev", relayed)
    assert "directly from 192.0.2.1:1 in 2.0 ms" in ping.describe("dev", direct)


def test_a_speed_test_is_told_as_other_clients_do() -> None:
    intervals = [Interval(0.0, 1.0, 5_000_000), Interval(1.0, 2.5, 10_000_000)]
    whole = speedtest.total(intervals)
    assert speedtest.as_object(whole) == {
        "start_time_seconds": 0.0,
        "end_time_seconds": 2.5,
        "throughput_mbits": 48.0,
    }
    assert speedtest.line(whole) == "    0.00-2.50 s      15.00 MB      48.00 Mbit/s"
    with pytest.raises(CliError, match="not one byte"):
        speedtest.total([])
