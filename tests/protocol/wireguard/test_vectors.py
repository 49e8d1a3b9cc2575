"""The bytes of tailnet.md §11.4 and §11.5."""

from __future__ import annotations

import pytest

from agent.protocol.wireguard import Device
from agent.protocol.wireguard.cookies import Checker, Stamper
from agent.protocol.wireguard.noise import timestamp
from tests.protocol.wireguard.kit import (
    AGENT_ADDRESS,
    AGENT_EPHEMERAL,
    AGENT_PRIVATE,
    CLIENT_ADDRESS,
    CLIENT_EPHEMERAL,
    CLIENT_PRIVATE,
    WALL_NS,
    outgoing,
    scripted,
)

AGENT_PUBLIC = bytes.fromhex("7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13")
CLIENT_PUBLIC = bytes.fromhex("0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20")

INITIATION = bytes.fromhex(
    "0100000004030201219e4d800da968d2a5fcb009c784f4746c7138edb9ee4844"
    "b739e830b05cf424c8df602c9bce88dec23105890930ce8401f9e4c1a457b1a4"
    "796e6b84cda1312944c3402bd101cd68cde013a56b0baaa8c1eab7e77609427f"
    "2b659e448e35edd649bdfe04e8a6f4eff37413b252219cee65c317c264032552"
    "57999cfe00000000000000000000000000000000"
)
RESPONSE = bytes.fromhex(
    "020000000d0c0b0a040302011cf579aba45a10ba1d1ef06d91fca2aa9ed0a115"
    "0515653155405d0b18cb9a67d461e83e75b643eaf62b0035fee0c25fbb42ec0a"
    "6f6fca69d15d76956484683e00000000000000000000000000000000"
)
KEEPALIVE = bytes.fromhex("040000000d0c0b0a0000000000000000304b98131808f7b7fb6b8577a925abc6")
PING = bytes.fromhex(
    "6000000000096340fd7a115ca1e043338444555555555555fd7a115ca1e04c2a9d6e1f2e3d4c5b6a700102030405060708"
)
PING_MESSAGE = bytes.fromhex(
    "040000000d0c0b0a0100000000000000d25bb7f680d808b49f75130863f930d6"
    "2c5ab3a8f4fd6bc4868f3d8fb87ec9c1ac8d84547baeee1141afbc5d82c19e16"
    "c87f5334bdc38437a60279d47ad88c263d997833d290377d01f19500826b0d15"
)
PONG = bytes.fromhex(
    "600fffff000b6340fd7a115ca1e04c2a9d6e1f2e3d4c5b6afd7a115ca1e0433384445555555555556f01020304050607080000"
)
PONG_MESSAGE = bytes.fromhex(
    "040000000403020100000000000000006a5391bab2e7f274ef9568b12509dbf8"
    "48c92f3bc5d9eeb29d90d9f9018d58d46e861ce14359f836d993751674601c3e"
    "4722a20bc4cf585612b5fbd37afbfe650df755177ca9eb97069279266b6d1e63"
)


def _client() -> Device:
    device = Device(CLIENT_PRIVATE, scripted({4: [bytes.fromhex("04030201")], 32: [CLIENT_EPHEMERAL]}))
    device.add_peer(AGENT_PUBLIC, [AGENT_ADDRESS], keepalive=25)
    return device


def _agent() -> Device:
    device = Device(AGENT_PRIVATE, scripted({4: [bytes.fromhex("0d0c0b0a")], 32: [AGENT_EPHEMERAL]}))
    device.add_peer(CLIENT_PUBLIC, [CLIENT_ADDRESS])
    return device


@pytest.mark.spec("tailnet", 6)
def test_the_initiator_speaks_the_recorded_bytes() -> None:
    client = _client()
    assert client.public_key == CLIENT_PUBLIC
    assert outgoing(client.handle_timeout(10.0, WALL_NS)) == [INITIATION]
    received = client.receive([RESPONSE], 10.1, WALL_NS)
    assert outgoing(received.output) == [KEEPALIVE]
    assert received.established == [client.peer(AGENT_PUBLIC)]
    assert outgoing(client.send([PING], 10.2, WALL_NS)) == [PING_MESSAGE]
    assert client.receive([PONG_MESSAGE], 10.3, WALL_NS).packets == [(client.peer(AGENT_PUBLIC), [PONG])]


@pytest.mark.spec("tailnet", 6)
def test_the_responder_speaks_the_recorded_bytes() -> None:
    agent = _agent()
    assert agent.public_key == AGENT_PUBLIC
    received = agent.receive([INITIATION], 20.0, WALL_NS)
    assert outgoing(received.output) == [RESPONSE]
    assert received.established == []
    received = agent.receive([KEEPALIVE, PING_MESSAGE], 20.1, WALL_NS)
    assert received.established == [agent.peer(CLIENT_PUBLIC)]
    assert received.packets == [(agent.peer(CLIENT_PUBLIC), [PING])]
    assert outgoing(agent.send([PONG], 20.2, WALL_NS)) == [PONG_MESSAGE]


@pytest.mark.spec("tailnet", 6)
def test_cookies_have_the_recorded_bytes() -> None:
    source = bytes.fromhex("fd000000000000000000000000000001" + "3930")
    checker = Checker(AGENT_PUBLIC, scripted({32: [bytes([0x99] * 32), bytes(32)], 24: [bytes(range(24))]}))
    reply = checker.reply(INITIATION, source, 0.0)
    assert reply == bytes.fromhex(
        "0300000004030201000102030405060708090a0b0c0d0e0f1011121314151617"
        "2c95e4388dd5d518307d568d0c7530ab820b7563cbeb4f909311ac5434dd74d0"
    )
    stamper = Stamper(AGENT_PUBLIC)
    assert stamper.stamp(INITIATION[:116], 0.0) == INITIATION
    assert stamper.take_cookie(reply, 1.0)
    assert not stamper.take_cookie(reply, 1.0), "one cookie per message"
    stamped = stamper.stamp(INITIATION[:116], 2.0)
    assert stamped == INITIATION[:132] + bytes.fromhex("28e3c761e7feb220d42a644d5a12da2c")
    assert checker.mac2_is_valid(stamped, source, 2.0)
    assert not checker.mac2_is_valid(stamped, b"elsewhere", 2.0)
    assert not checker.mac2_is_valid(INITIATION, source, 2.0)
    assert not checker.mac2_is_valid(stamped, source, 121.0), "the secret changes every 120 s"
    assert stamper.stamp(INITIATION[:116], 122.0) == INITIATION, "a cookie lasts 120 s"


def test_the_timestamp_hides_the_fine_clock() -> None:
    assert timestamp(WALL_NS).hex() == "40000000684ee18a07000000"
