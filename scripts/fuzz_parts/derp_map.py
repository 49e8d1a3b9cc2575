"""DERP maps: of an owner's file, of a server's JSON, and of a server's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator

from google.protobuf.message import DecodeError
from yarl import URL

from agent.api.proto import tailnet_pb2 as pb
from agent.tailnet.derp_map import DerpMapError, from_json, from_message, from_owner, to_json, to_message

NODE = {"Name": "1a", "RegionID": 1, "HostName": "derp.example.com", "STUNPort": 3478, "DERPPort": 443}
REGION = {"RegionID": 1, "RegionCode": "one", "RegionName": "One", "Nodes": [NODE], "EmbeddedRelay": False}
MAP = {"Regions": {"1": REGION}, "HomeParams": {"RegionScore": {"1": 0.5}}, "OmitDefaultRegions": True}


def seeds() -> Iterator[bytes]:
    yield b"\0" + json.dumps(MAP).encode()
    yield b"\0Regions:\n  1:\n    RegionID: 1\n    Nodes: [{Name: a, RegionID: 1, HostName: b}]\n"
    yield b"\1" + to_message(from_json(MAP)).SerializeToString()


def target(data: bytes) -> None:
    if data[:1] != b"\1":
        try:
            made = from_owner(data[1:])
        except DerpMapError:
            return
    else:
        try:
            made = from_message(pb.DERPMap.FromString(data[1:]))
        except (DecodeError, DerpMapError):
            return
    made.rewritten(URL("https://example.com"))
    made.same_relays(made)
    assert json.dumps(to_json(made))
    again = from_message(pb.DERPMap.FromString(to_message(made).SerializeToString()))
    assert again.same_relays(made)
