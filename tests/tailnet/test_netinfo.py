"""What a network check amounts to."""

from __future__ import annotations

import json
from ipaddress import ip_address

from agent.protocol import stun
from agent.protocol.ip import Endpoint, mapped
from agent.tailnet.netinfo import StunRound, summarise


def end(address: str, port: int = 3478) -> Endpoint:
    return mapped(ip_address(address).packed), port


def answer(round_: StunRound, server: Endpoint, seen: Endpoint | None) -> None:
    txid = stun.parse_request(round_.ask(server))
    assert txid is not None
    if seen is not None:
        assert round_.take(stun.Response(txid, seen))
        assert not round_.take(stun.Response(txid, seen))


def test_nobody_to_ask_is_unknown() -> None:
    info = summarise(1, {"1-v4": 0.01, "1-v6": 0.02, "2-v4": 0.5}, StunRound(), ipv6_socket=True)
    assert (info.udp, info.udp4, info.mapping_varies) == (None, None, None)
    assert info.to_json() == {
        "MappingVariesByDestIP": None,
        "HairPinning": None,
        "WorkingIPv6": None,
        "OSHasIPv6": True,
        "WorkingUDP": None,
        "WorkingICMPv4": None,
        "UPnP": None,
        "PMP": None,
        "PCP": None,
        "PreferredDERP": 1,
        "DERPLatency": {"1-v4": 0.01, "1-v6": 0.02, "2-v4": 0.5},
        "DERPLatencyV4": {"1": 0.01, "2": 0.5},
        "DERPLatencyV6": {"1": 0.02},
    }


def test_silence_is_no_udp() -> None:
    round_ = StunRound()
    answer(round_, end("192.0.2.1"), None)
    info = summarise(0, {}, round_, ipv6_socket=False)
    assert (info.udp, info.udp4, info.udp6) == (False, False, None)
    assert json.loads(json.dumps(info.to_json()))["WorkingUDP"] is False


def test_one_witness_cannot_tell_whether_the_mapping_varies() -> None:
    round_ = StunRound()
    answer(round_, end("192.0.2.1"), end("198.51.100.7", 4000))
    answer(round_, end("192.0.2.2"), None)
    info = summarise(1, {}, round_, ipv6_socket=True)
    assert (info.udp, info.mapping_varies, info.seen4) == (True, None, "198.51.100.7:4000")


def test_two_witnesses_can() -> None:
    for port, varies in ((4000, False), (4001, True)):
        round_ = StunRound()
        answer(round_, end("192.0.2.1"), end("198.51.100.7", 4000))
        answer(round_, end("192.0.2.2"), end("198.51.100.7", port))
        answer(round_, end("2001:db8::1"), end("2001:db8::7", 9))
        info = summarise(1, {}, round_, ipv6_socket=True)
        assert info.mapping_varies is varies
        assert info.seen6 == "[2001:db8::7]:9"
        assert info.udp6


def test_only_answers_to_questions_of_this_round_count() -> None:
    round_ = StunRound()
    assert not round_.take(stun.Response(bytes(12), end("198.51.100.7")))
    assert not round_.answers
