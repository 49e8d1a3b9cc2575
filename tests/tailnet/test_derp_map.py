"""DERP maps from messages and JSON (tailnet.md §5.8, §5.9)."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.api.proto import tailnet_pb2 as pb
from agent.tailnet import derp_map
from agent.tailnet.derp_map import DerpMap, DerpMapError, Node, Region, from_json, from_message, from_owner, to_json

VECTORS = Path(__file__).parents[1] / "vectors" / "rest.json"


def recorded() -> dict[str, Any]:
    entries = json.loads(VECTORS.read_text())
    value = next(entry for entry in entries if entry["name"] == "connection")["response"]["derp_map"]
    assert isinstance(value, dict)
    return value


def document(**node: Any) -> dict[str, Any]:
    """An owner's map; `node` changes its relay."""
    relay = {"Name": "1a", "RegionID": 1, "HostName": "relay.example.com"} | node
    stun = {"Name": "2a", "RegionID": 2, "HostName": "stun.example.com", "STUNOnly": True, "STUNPort": 19302}
    return {
        "HomeParams": {"RegionScore": {"1": 0.5}},
        "Regions": {
            "1": {"RegionID": 1, "RegionCode": "one", "RegionName": "One", "Nodes": [relay]},
            "2": {"RegionID": 2, "Nodes": [stun], "Avoid": True},
        },
    }


def mistakes(value: Any) -> list[str]:
    with pytest.raises(DerpMapError) as caught:
        from_owner(json.dumps(value))
    return list(caught.value.mistakes)


def test_the_map_of_a_go_server_comes_back() -> None:
    made = from_json(recorded())
    assert to_json(made) == recorded()
    assert list(to_json(made)["Regions"]["999"]) == list(recorded()["Regions"]["999"])
    node = made.regions[999].nodes[0]
    assert (node.port, node.stun, node.force_http, made.regions[999].embedded_relay) == (13000, None, True, True)


def _renamed(value: Any, rename: Any) -> Any:
    if isinstance(value, dict):
        return {rename(key): _renamed(entry, rename) for key, entry in value.items()}
    return [_renamed(entry, rename) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize("rename", [str.lower, str.upper, str.swapcase])
def test_capitalisation_means_nothing(rename: Any) -> None:
    value = document() | {"omitDefaultRegions": True}
    assert from_json(_renamed(value, rename)) == from_json(value) == from_owner(json.dumps(value))


def test_what_go_calls_nothing() -> None:
    assert from_json(None) == from_json({}) == from_json({"Regions": None, "HomeParams": None}) == DerpMap()
    assert from_json({"Regions": {"1": {"Nodes": None}}, "Unknown": 1}).regions[1] == Region(0)


def test_messages() -> None:
    made = from_owner(json.dumps(document(STUNPort=-1, DERPPort=8443, CanPort80=True, CertName="other", IPv4="none")))
    message = derp_map.to_message(made)
    assert from_message(message) == made
    assert message.SerializeToString(deterministic=True)[:1] == b"\x0a"
    assert derp_map.to_message(DerpMap()).SerializeToString() == b"\x0a\x00"
    assert from_message(pb.DERPMap()) == DerpMap()


def test_defaults() -> None:
    made = from_owner(json.dumps(document()))
    assert (made.regions[1].nodes[0].port, made.regions[1].nodes[0].stun) == (443, 3478)
    assert made.regions[2].relays == ()
    assert made.regions[2].nodes[0].stun == 19302


@pytest.mark.parametrize(
    ("url", "host", "port", "plain"),
    [
        ("https://coder.example.com/", "coder.example.com", 443, False),
        ("http://coder.example.com", "coder.example.com", 80, True),
        ("http://[::1]:7080", "::1", 7080, True),
    ],
)
def test_embedded_relays_are_where_the_server_is(url: str, host: str, port: int, plain: bool) -> None:
    made = from_json(recorded())
    stun = Node("s", 999, "stun.example.com", stun_only=True)
    region = replace(made.regions[999], nodes=(*made.regions[999].nodes, stun))
    other = from_json(document()).regions[1]
    rewritten = replace(made, regions={999: region, 1: other}).rewritten(URL(url))
    node = rewritten.regions[999].nodes[0]
    assert (node.host_name, node.port, node.force_http) == (host, port, plain)
    assert rewritten.regions[999].nodes[1] == stun
    assert rewritten.regions[1] == other


def test_what_makes_maps_the_same() -> None:
    made = from_json(recorded())
    region = made.regions[999]
    second = replace(region.nodes[0], name="999c")
    both = replace(made, regions={999: replace(region, nodes=(region.nodes[0], second))})
    swapped = replace(made, regions={999: replace(region, nodes=(second, region.nodes[0]))})
    assert both.same_relays(swapped)
    assert both.same_relays(replace(swapped, scores={999: 2.0}))
    assert not both.same_relays(made)
    assert made.same_relays(
        replace(made, regions={999: replace(region, nodes=(replace(region.nodes[0], can_port_80=True),))})
    )
    for change in ({"derp_port": 1}, {"cert_name": "x"}, {"stun_test_ip": "192.0.2.1"}):
        assert not made.same_relays(
            replace(made, regions={999: replace(region, nodes=(replace(region.nodes[0], **change),))})
        )
    assert not made.same_relays(replace(made, regions={999: replace(region, avoid=True)}))


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"DERPPort": 65536}, "Regions.1.Nodes[0].DERPPort must be a port (0 is 443)"),
        ({"DERPPort": "443"}, "Regions.1.Nodes[0].DERPPort must be a whole number"),
        ({"DERPPort": True}, "Regions.1.Nodes[0].DERPPort must be a whole number"),
        ({"DERPPort": 10**30}, "Regions.1.Nodes[0].DERPPort must be a whole number"),
        ({"STUNPort": -2}, "Regions.1.Nodes[0].STUNPort must be a port (0 is 3478, -1 is none)"),
        ({"HostName": "https://x"}, "Regions.1.Nodes[0].HostName must be a host name, without a scheme and a path"),
        ({"HostName": ""}, "Regions.1.Nodes[0].HostName must be a host name, without a scheme and a path"),
        ({"Name": ""}, "Regions.1.Nodes[0].Name is missing"),
        ({"Name": "2a"}, 'Regions.2.Nodes[0].Name "2a" is the name of Regions.1.Nodes[0], too'),
        ({"RegionID": 2}, "Regions.1.Nodes[0].RegionID must be 1, as its region's"),
        ({"IPv4": "::1"}, 'Regions.1.Nodes[0].IPv4 must be an IPv4 address, or "none"'),
        ({"IPv6": "127.0.0.1"}, 'Regions.1.Nodes[0].IPv6 must be an IPv6 address, or "none"'),
        ({"STUNOnly": True, "STUNPort": -1}, "Regions.1.Nodes[0] is STUNOnly and has no STUN: it is of no use"),
        ({"STUNOnly": True}, "Regions must have a node that is not STUNOnly: every connection begins at a relay"),
    ],
)
def test_mistakes_in_a_node(changes: dict[str, Any], mistake: str) -> None:
    assert mistake in mistakes(document(**changes))


def test_other_mistakes_are_told_together() -> None:
    value = document(Port=1)
    value["regionz"] = {}
    value["Regions"]["x"] = {}
    value["Regions"]["0"] = {}
    value["Regions"]["3"] = None
    value["Regions"]["2"]["Nodes"] = {}
    value["HomeParams"]["RegionScore"]["1"] = "fast"
    found = mistakes(value)
    assert [line.split(" ")[0] for line in found] == [
        "regionz",
        "HomeParams.RegionScore.1",
        "Regions.1.Nodes[0].Port",
        "Regions.2.Nodes",
        "Regions.x",
        "Regions.0",
        "Regions.3",
    ]
    value = document()
    value["Regions"]["1"]["RegionID"] = 5
    value["Regions"]["2"]["Nodes"] = []
    value["HomeParams"]["RegionScore"] = {"7": 0}
    assert mistakes(value) == [
        "HomeParams.RegionScore.7 is of a region that is not in Regions",
        "HomeParams.RegionScore.7 must be above 0: others are ignored",
        "Regions.1.RegionID must be 1, as its key says",
        "Regions.2.Nodes must not be empty",
    ]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "1", "null"])
def test_documents_that_are_no_map(text: str) -> None:
    with pytest.raises(DerpMapError):
        from_owner(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Regions", "1", "x", "Nodes", "Name", "DERPPort", "RegionID", "HomeParams", "RegionScore"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_value(value: Any) -> None:
    for read in (from_json, lambda value: from_owner(json.dumps(value))):
        with suppress(DerpMapError):
            to_json(read(value))
