"""The values of tailnet.md §11.1 and §11.8, byte for byte."""

from __future__ import annotations

import contextlib
from uuid import UUID

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from agent.api import tailnet
from agent.api.methods import COORDINATE
from agent.api.proto import tailnet_pb2 as pb

AGENT = UUID("8a3c5d1e-0b7f-4c2a-9d6e-1f2e3d4c5b6a")
CLIENT = UUID("11111111-2222-4333-8444-555555555555")
AGENT_KEY = bytes.fromhex("7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13")
AGENT_DISCO = bytes.fromhex("7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14")
NODE = bytes.fromhex(
    "0896c9ce959c9af8c862120b0880c3bbc206108094ef3a1a226e707b4e909bbe"
    "7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f132249646973"
    "636f6b65793a3762306434376439333432376638333131313630373831633763"
    "3733336664383966383839373061656634393064386161306565313961346362"
    "38613162313428e70732110a063939392d7634119a9999999999893f422b6664"
    "37613a313135633a613165303a346332613a396436653a316632653a33643463"
    "3a356236612f313238422b666436303a363237613a613432623a346332613a39"
    "6436653a316632653a336434633a356236612f3132384a2b666437613a313135"
    "633a613165303a346332613a396436653a316632653a336434633a356236612f"
    "3132384a2b666436303a363237613a613432623a346332613a396436653a3166"
    "32653a336434633a356236612f31323852113230332e302e3131332e393a3431"
    "363431"
)


def agent_node() -> pb.Node:
    addresses = [tailnet.address_text(packed) for packed in tailnet.agent_addresses(AGENT)]
    return pb.Node(
        id=tailnet.node_id(AGENT),
        as_of=Timestamp(seconds=1750000000, nanos=123456000),
        key=tailnet.write_key(AGENT_KEY),
        disco=tailnet.write_disco(AGENT_DISCO),
        preferred_derp=999,
        derp_latency={"999-v4": 0.0125},
        addresses=addresses,
        allowed_ips=addresses,
        endpoints=["203.0.113.9:41641"],
    )


@pytest.mark.spec("tailnet", 1)
def test_addresses_and_ids() -> None:
    assert [tailnet.address_text(packed) for packed in tailnet.agent_addresses(AGENT)] == [
        "fd7a:115c:a1e0:4c2a:9d6e:1f2e:3d4c:5b6a/128",
        "fd60:627a:a42b:4c2a:9d6e:1f2e:3d4c:5b6a/128",
    ]
    assert tailnet.node_id(AGENT) == 7102705278859322518
    client = tailnet.address(tailnet.TAILSCALE_PREFIX, CLIENT)
    assert tailnet.address_text(client) == "fd7a:115c:a1e0:4333:8444:5555:5555:5555/128"
    assert tailnet.node_id(CLIENT) == 8915907537294502571
    assert tailnet.write_key(AGENT_KEY).hex() == "6e70" + AGENT_KEY.hex()
    assert tailnet.write_disco(AGENT_DISCO) == "discokey:" + AGENT_DISCO.hex()


@pytest.mark.spec("tailnet", 2)
def test_a_node_is_written_and_read_byte_for_byte() -> None:
    assert agent_node().SerializeToString(deterministic=True) == NODE
    node = tailnet.read_node(pb.Node.FromString(NODE))
    assert (node.key, node.disco, node.home) == (AGENT_KEY, AGENT_DISCO, 999)
    assert [str(prefix) for prefix in node.addresses] == list(agent_node().addresses)
    assert node.allowed_ips == node.addresses
    assert node.endpoints == ("203.0.113.9:41641",)
    assert node.latencies == {"999-v4": 0.0125}


def test_requests_and_responses() -> None:
    request = pb.CoordinateRequest(update_self=pb.CoordinateRequest.UpdateSelf(node=agent_node()))
    assert request.SerializeToString(deterministic=True) == bytes.fromhex("0ae6020ae302") + NODE
    tunnel = pb.CoordinateRequest(add_tunnel=pb.CoordinateRequest.Tunnel(id=AGENT.bytes))
    assert tunnel.SerializeToString().hex() == "1a120a108a3c5d1e0b7f4c2a9d6e1f2e3d4c5b6a"
    ready = pb.CoordinateRequest(ready_for_handshake=[pb.CoordinateRequest.ReadyForHandshake(id=CLIENT.bytes)])
    assert ready.SerializeToString().hex() == "2a120a1011111111222243338444555555555555"
    leave = pb.CoordinateRequest(disconnect=pb.CoordinateRequest.Disconnect())
    assert leave.SerializeToString().hex() == "1200"
    update = pb.CoordinateResponse.PeerUpdate
    answer = pb.CoordinateResponse(peer_updates=[update(id=AGENT.bytes, kind=update.READY_FOR_HANDSHAKE)])
    assert answer.SerializeToString().hex() == "0a140a108a3c5d1e0b7f4c2a9d6e1f2e3d4c5b6a1804"
    gone = update(id=CLIENT.bytes, kind=update.DISCONNECTED, reason="graceful disconnect")
    assert pb.CoordinateResponse(peer_updates=[gone]).SerializeToString().hex() == (
        "0a290a101111111122224333844455555555555518022213677261636566756c20646973636f6e6e656374"
    )
    assert pb.DERPMap(home_params=pb.DERPMap.HomeParams()).SerializeToString().hex() == "0a00"
    assert COORDINATE.path == "/coder.tailnet.v2.Tailnet/Coordinate"


@pytest.mark.spec("tailnet", 2)
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"key": AGENT_KEY}, "key"),
        ({"key": b"xp" + AGENT_KEY}, "key"),
        ({"key": b"np" + AGENT_KEY + b"x"}, "key"),
        ({"disco": AGENT_DISCO.hex()}, "disco"),
        ({"disco": "discokey:" + "0" * 64}, "disco: must not be zero"),
        ({"disco": "discokey:" + "zz" * 32}, "disco"),
        ({"addresses": ["fd7a::1"]}, "addresses"),
        ({"addresses": ["fd7a::1/129"]}, "addresses"),
        ({"addresses": ["fd7a::1/ffff::"]}, "addresses"),
        ({"addresses": ["x/128"]}, "addresses"),
        ({"allowed_ips": ["fd7a::1%eth0/128"]}, "allowed_ips"),
        ({"allowed_ips": [""]}, "allowed_ips"),
    ],
)
def test_what_a_node_must_not_have(changes: dict[str, object], text: str) -> None:
    node = agent_node()
    for name, value in changes.items():
        node.ClearField(name)  # type: ignore[arg-type]
        node.MergeFrom(pb.Node(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(tailnet.NodeError, match=text):
        tailnet.read_node(node)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_node_or_an_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError, tailnet.NodeError):
        tailnet.read_node(pb.Node.FromString(data))


@given(
    st.builds(pb.Node, key=st.binary(), disco=st.text(), addresses=st.lists(st.text()), allowed_ips=st.lists(st.text()))
)
def test_any_fields_are_a_node_or_an_error(node: pb.Node) -> None:
    with contextlib.suppress(tailnet.NodeError):
        tailnet.read_node(node)


@given(st.uuids())
def test_ids_are_positive(peer: UUID) -> None:
    assert 0 <= tailnet.node_id(peer) < 2**63
