"""Which relays there are: the DERP map as values, from messages and from JSON (tailnet.md §5.8, §5.9)."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from yarl import URL

from agent.api.proto import tailnet_pb2 as pb

DEFAULT_DERP_PORT: Final = 443
DEFAULT_STUN_PORT: Final = 3478
NO_STUN: Final = -1
MAX_INT64: Final = (1 << 63) - 1


class DerpMapError(ValueError):
    """A DERP map that cannot be used. `mistakes` has one line for each, with its path in the document."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(frozen=True, slots=True)
class Node:
    """One relay or STUN server. Ports are as they were given: `port` and `stun` know the defaults."""

    name: str
    region_id: int
    host_name: str
    cert_name: str = ""
    ipv4: str = ""
    ipv6: str = ""
    stun_port: int = 0
    stun_only: bool = False
    derp_port: int = 0
    insecure_for_tests: bool = False
    force_http: bool = False
    stun_test_ip: str = ""
    can_port_80: bool = False

    @property
    def port(self) -> int:
        """Where the relay listens."""
        return self.derp_port or DEFAULT_DERP_PORT

    @property
    def stun(self) -> int | None:
        """Where STUN is answered; None: nowhere."""
        return None if self.stun_port < 0 else self.stun_port or DEFAULT_STUN_PORT


@dataclass(frozen=True, slots=True)
class Region:
    """Relays that reach each other."""

    id: int
    code: str = ""
    name: str = ""
    embedded_relay: bool = False
    avoid: bool = False
    nodes: tuple[Node, ...] = ()

    @property
    def relays(self) -> tuple[Node, ...]:
        """The nodes that relay; a region without any can never be home."""
        return tuple(node for node in self.nodes if not node.stun_only)


@dataclass(frozen=True, slots=True)
class DerpMap:
    """All regions by their ids, and what their latencies are multiplied with when a home is chosen."""

    regions: Mapping[int, Region] = field(default_factory=lambda: MappingProxyType({}))
    scores: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    omit_default_regions: bool = False

    def same_relays(self, other: DerpMap) -> bool:
        """Whether nothing changed that matters to a connection: neither the order of nodes does, nor scores (§5.8)."""
        return _comparable(self) == _comparable(other)

    def rewritten(self, server: URL) -> DerpMap:
        """The map in which embedded relays are where this process finds the server (§5.9)."""
        changes = {
            "host_name": server.host or "",
            "derp_port": server.port or (443 if server.scheme == "https" else 80),
            "force_http": server.scheme == "http",
        }
        regions = {
            number: replace(
                region,
                nodes=tuple(node if node.stun_only else replace(node, **changes) for node in region.nodes),  # type: ignore[arg-type]
            )
            if region.embedded_relay
            else region
            for number, region in self.regions.items()
        }
        return replace(self, regions=MappingProxyType(regions))


def _comparable(derp_map: DerpMap) -> dict[int, Region]:
    return {
        number: replace(
            region,
            nodes=tuple(
                sorted((replace(node, can_port_80=False) for node in region.nodes), key=lambda node: node.name)
            ),
        )
        for number, region in derp_map.regions.items()
    }


# ---- messages

_NODE_FIELDS: Final = tuple(Node.__dataclass_fields__)


def from_message(message: pb.DERPMap) -> DerpMap:
    """Of a manifest or a stream. What cannot be used is found out when it is used."""
    regions = {
        number: Region(
            id=region.region_id,
            code=region.region_code,
            name=region.region_name,
            embedded_relay=region.embedded_relay,
            avoid=region.avoid,
            nodes=tuple(Node(*(getattr(node, name) for name in _NODE_FIELDS)) for node in region.nodes),
        )
        for number, region in message.regions.items()
    }
    return DerpMap(MappingProxyType(regions), MappingProxyType(dict(message.home_params.region_score)))


def to_message(derp_map: DerpMap) -> pb.DERPMap:
    """For a manifest or a stream; peers crash where `home_params` is absent."""
    message = pb.DERPMap(home_params=pb.DERPMap.HomeParams(region_score=derp_map.scores))
    for number, region in derp_map.regions.items():
        nodes = [
            pb.DERPMap.Region.Node(**{name: getattr(node, name) for name in _NODE_FIELDS}) for node in region.nodes
        ]
        message.regions[number].CopyFrom(
            pb.DERPMap.Region(
                region_id=region.id,
                embedded_relay=region.embedded_relay,
                region_code=region.code,
                region_name=region.name,
                avoid=region.avoid,
                nodes=nodes,
            )
        )
    return message


# ---- JSON

_NODE_KEYS: Final = MappingProxyType(
    {
        "Name": "name",
        "RegionID": "region_id",
        "HostName": "host_name",
        "CertName": "cert_name",
        "IPv4": "ipv4",
        "IPv6": "ipv6",
        "STUNPort": "stun_port",
        "STUNOnly": "stun_only",
        "DERPPort": "derp_port",
        "InsecureForTests": "insecure_for_tests",
        "ForceHTTP": "force_http",
        "STUNTestIP": "stun_test_ip",
        "CanPort80": "can_port_80",
    }
)
_REQUIRED_NODE_KEYS: Final = ("Name", "RegionID", "HostName")
_REGION_KEYS: Final = MappingProxyType(
    {
        "EmbeddedRelay": "embedded_relay",
        "RegionID": "id",
        "RegionCode": "code",
        "RegionName": "name",
        "Avoid": "avoid",
        "Nodes": "nodes",
    }
)
_MAP_KEYS: Final = ("HomeParams", "Regions", "omitDefaultRegions")
_NODE_TYPES: Final = MappingProxyType({f.name: str(f.type) for f in Node.__dataclass_fields__.values()})
_KINDS: Final = MappingProxyType(
    {"str": ("a string", str), "int": ("a whole number", int), "bool": ("true or false", bool)}
)


def to_json(derp_map: DerpMap) -> dict[str, Any]:
    """The value that Go servers write, for any JSON encoder."""
    value: dict[str, Any] = {}
    if derp_map.scores:
        value["HomeParams"] = {"RegionScore": {str(number): score for number, score in derp_map.scores.items()}}
    value["Regions"] = {str(number): _region_json(region) for number, region in sorted(derp_map.regions.items())}
    if derp_map.omit_default_regions:
        value["omitDefaultRegions"] = True
    return value


def _region_json(region: Region) -> dict[str, Any]:
    value: dict[str, Any] = {
        "EmbeddedRelay": region.embedded_relay,
        "RegionID": region.id,
        "RegionCode": region.code,
        "RegionName": region.name,
    }
    if region.avoid:
        value["Avoid"] = True
    value["Nodes"] = [
        {
            key: getattr(node, name)
            for key, name in _NODE_KEYS.items()
            if getattr(node, name) or key in _REQUIRED_NODE_KEYS
        }
        for node in region.nodes
    ]
    return value


def from_json(value: object) -> DerpMap:
    """A map that a server sent; keys in any capitalisation, unknown ones ignored. Raises `DerpMapError`."""
    return _Reader(strict=False).read(value)


def from_owner(text: str | bytes) -> DerpMap:
    """A map that a person wrote as JSON, checked for everything that can be a mistake. Raises `DerpMapError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DerpMapError([f"it is no JSON: {error}"]) from error
    return _Reader(strict=True).read(value)


class _Reader:
    """Goes on after a mistake, so that all of them are told together."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._mistakes: list[str] = []

    def read(self, value: object) -> DerpMap:
        entries = self._object(value, "", _MAP_KEYS)
        scores = self._numbered(
            self._object(entries.get("HomeParams"), "HomeParams", ("RegionScore",)).get("RegionScore"),
            "HomeParams.RegionScore",
            self._score,
        )
        regions = self._numbered(entries.get("Regions"), "Regions", self._region)
        omit = self._scalar(entries.get("omitDefaultRegions"), "omitDefaultRegions", "bool")
        made = DerpMap(MappingProxyType(regions), MappingProxyType(scores), bool(omit))
        if self._strict and not self._mistakes:
            self._check(made)
        if self._mistakes:
            raise DerpMapError(self._mistakes)
        return made

    def _mistake(self, path: str, text: str) -> None:
        self._mistakes.append(f"{path or 'the document'} {text}")

    def _object(self, value: object, path: str, keys: Sequence[str]) -> dict[str, Any]:
        """The entries of an object by their proper keys."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._mistake(path, "must be an object")
            return {}
        proper = {key.lower(): key for key in keys}
        entries: dict[str, Any] = {}
        for key, entry in value.items():
            name = proper.get(key.lower())
            if name is not None:
                entries[name] = entry
            elif self._strict:
                self._mistake(_join(path, key), f"is not known; known are {', '.join(keys)}")
        return entries

    def _numbered(self, value: object, path: str, read: Callable[[Any, str, int], Any]) -> dict[int, Any]:
        """An object whose keys are region ids."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._mistake(path, "must be an object")
            return {}
        found = {}
        for key, entry in value.items():
            if key.isascii() and key.isdigit() and 0 < int(key[:20]) <= MAX_INT64:
                found[int(key)] = read(entry, _join(path, key), int(key))
            else:
                self._mistake(_join(path, key), "must be named by a positive whole number")
        return found

    def _score(self, value: object, path: str, _: int) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_INT64:
            self._mistake(path, "must be a number")
            return 0.0
        return float(value)

    def _scalar(self, value: object, path: str, kind: str) -> Any:
        """A value of that type, its zero value where there is none or a wrong one."""
        words, wanted = _KINDS[kind]
        if value is None:
            return wanted()
        if type(value) is not wanted or (isinstance(value, int) and abs(value) > MAX_INT64):
            self._mistake(path, f"must be {words}")
            return wanted()
        return value

    def _region(self, value: object, path: str, _: int) -> Region:
        if value is None:
            self._mistake(path, "must be an object")
        entries = self._object(value, path, tuple(_REGION_KEYS))
        nodes = entries.get("Nodes")
        if not isinstance(nodes, list):
            if nodes is not None:
                self._mistake(_join(path, "Nodes"), "must be a list")
            nodes = []
        return Region(
            id=self._scalar(entries.get("RegionID"), _join(path, "RegionID"), "int"),
            code=self._scalar(entries.get("RegionCode"), _join(path, "RegionCode"), "str"),
            name=self._scalar(entries.get("RegionName"), _join(path, "RegionName"), "str"),
            embedded_relay=self._scalar(entries.get("EmbeddedRelay"), _join(path, "EmbeddedRelay"), "bool"),
            avoid=self._scalar(entries.get("Avoid"), _join(path, "Avoid"), "bool"),
            nodes=tuple(self._node(node, f"{_join(path, 'Nodes')}[{index}]") for index, node in enumerate(nodes)),
        )

    def _node(self, value: object, path: str) -> Node:
        if value is None:
            self._mistake(path, "must be an object")
        entries = self._object(value, path, tuple(_NODE_KEYS))
        return Node(
            **{
                name: self._scalar(entries.get(key), _join(path, key), _NODE_TYPES[name])
                for key, name in _NODE_KEYS.items()
            }
        )

    def _check(self, made: DerpMap) -> None:
        """What is well-formed, but cannot be meant."""
        for number, score in made.scores.items():
            if number not in made.regions:
                self._mistake(f"HomeParams.RegionScore.{number}", "is of a region that is not in Regions")
            if not score > 0:
                self._mistake(f"HomeParams.RegionScore.{number}", "must be above 0: others are ignored")
        names: dict[str, str] = {}
        for number, region in made.regions.items():
            path = f"Regions.{number}"
            if region.id != number:
                self._mistake(f"{path}.RegionID", f"must be {number}, as its key says")
            if not region.nodes:
                self._mistake(f"{path}.Nodes", "must not be empty")
            for index, node in enumerate(region.nodes):
                where = f"{path}.Nodes[{index}]"
                self._check_node(node, number, where)
                if node.name in names:
                    self._mistake(f"{where}.Name", f'"{node.name}" is the name of {names[node.name]}, too')
                names.setdefault(node.name, where)
        if not any(region.relays for region in made.regions.values()):
            self._mistake("Regions", "must have a node that is not STUNOnly: every connection begins at a relay")

    def _check_node(self, node: Node, number: int, path: str) -> None:
        if not node.name:
            self._mistake(f"{path}.Name", "is missing")
        if node.region_id != number:
            self._mistake(f"{path}.RegionID", f"must be {number}, as its region's")
        if not node.host_name or any(c.isspace() or c in "/@?#" for c in node.host_name):
            self._mistake(f"{path}.HostName", "must be a host name, without a scheme and a path")
        if not 0 <= node.derp_port <= 65535:
            self._mistake(f"{path}.DERPPort", "must be a port (0 is 443)")
        if not NO_STUN <= node.stun_port <= 65535:
            self._mistake(f"{path}.STUNPort", "must be a port (0 is 3478, -1 is none)")
        if node.stun_only and node.stun is None:
            self._mistake(path, "is STUNOnly and has no STUN: it is of no use")
        for key, text, version in (("IPv4", node.ipv4, 4), ("IPv6", node.ipv6, 6)):
            if text not in ("", "none") and not _is_address(text, version):
                self._mistake(f"{path}.{key}", f'must be an IPv{version} address, or "none"')


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
