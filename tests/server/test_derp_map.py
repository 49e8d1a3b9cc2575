"""The map that a server hands out: its own relay, or the owner's file, read again when it changes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.server.derp_map import CHECK_PERIOD, TOPIC, DerpMapFileError, DerpMaps, DerpOptions
from agent.server.events import Events
from agent.tailnet.derp_map import to_json
from agent.testing import ManualClock

FILE = """
Regions:
  900:
    RegionID: 900
    RegionCode: fra
    RegionName: Frankfurt
    Nodes:
      - {Name: 900a, RegionID: 900, HostName: derp.example.com, STUNPort: 3478}
  901:
    RegionID: 901
    Nodes:
      - {Name: 901s, RegionID: 901, HostName: stun.example.com, STUNOnly: true}
  999:
    RegionID: 999
    RegionName: Here
    EmbeddedRelay: true
    Nodes:
      - {Name: 999b, RegionID: 999, HostName: elsewhere.example}
"""


def maps(options: DerpOptions, url: str = "https://example.com", clock: Clock | None = None) -> DerpMaps:
    return DerpMaps(url, options, Events(), clock or ManualClock())


def test_the_embedded_relay_is_at_the_access_url() -> None:
    [node] = maps(DerpOptions(), "http://127.0.0.1:13000").current.regions[999].nodes
    assert (node.host_name, node.derp_port, node.force_http, node.stun_port) == ("127.0.0.1", 13000, True, -1)
    made = maps(DerpOptions(stun_port=3478))
    [node] = made.current.regions[999].nodes
    assert (node.host_name, node.derp_port, node.force_http, node.stun_port) == ("example.com", 443, False, 3478)
    assert made.message.HasField("home_params")
    assert made.message.regions[999].embedded_relay


def test_without_direct_connections_there_is_no_stun() -> None:
    made = maps(DerpOptions(stun_port=3478, disable_direct=True))
    assert [node.stun_port for node in made.current.regions[999].nodes] == [-1]


async def test_an_owners_file(tmp_path: Path) -> None:
    file = tmp_path / "derp.yaml"
    file.write_text(FILE)
    made = maps(DerpOptions(file))
    await made.load()
    assert sorted(made.current.regions) == [900, 901, 999]
    assert made.current.regions[900].nodes[0].host_name == "derp.example.com"
    [here] = made.current.regions[999].nodes
    assert here.host_name == "example.com"
    file.write_text(json.dumps(to_json(made.current)))
    again = maps(DerpOptions(file))
    await again.load()
    assert again.current == made.current
    blocked = maps(DerpOptions(file, disable_direct=True))
    await blocked.load()
    assert sorted(blocked.current.regions) == [900, 999]
    assert {node.stun_port for region in blocked.current.regions.values() for node in region.nodes} == {-1}


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("Regions: [", ["neither YAML nor JSON"]),
        ("- 1", ["the document must be an object"]),
        ("Regions: {900: {RegionID: 901, Nodes: [{Name: a, RegionID: 900, HostName: 'http://x'}]}}",
         ["Regions.900.RegionID must be 900", "Regions.900.Nodes[0].HostName must be"]),
        ("Regions: {900: {RegionID: 2024-01-01}}", ["JSON has not"]),
        ("{}", ["STUNOnly"]),
    ],
)  # fmt: skip
async def test_every_mistake_is_told_with_its_place(tmp_path: Path, text: str, mistakes: list[str]) -> None:
    file = tmp_path / "derp.yaml"
    file.write_text(text)
    with pytest.raises(DerpMapFileError) as refused:
        await maps(DerpOptions(file)).load()
    assert str(file) in str(refused.value)
    for mistake in mistakes:
        assert mistake in str(refused.value)


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DerpMapFileError, match="no such file"):
        await maps(DerpOptions(tmp_path / "none")).load()


async def test_a_changed_file_is_told_and_a_broken_one_is_not(tmp_path: Path) -> None:
    file, clock, events = tmp_path / "derp.yaml", ManualClock(), Events()
    file.write_text(FILE)
    made = DerpMaps("https://example.com", DerpOptions(file), events, clock)
    await made.load()
    first = made.current
    watching = asyncio.create_task(made.run())
    with events.subscribe(TOPIC) as changes:
        told = asyncio.create_task(changes.wait())

        async def period() -> None:
            await clock.advance(CHECK_PERIOD)
            for _ in range(100):  # the file is read in a thread
                await asyncio.sleep(0.001)
                if clock.sleepers:
                    break

        await period()
        assert made.current is first
        file.write_text("Regions: {}\n")
        await period()
        file.unlink()
        await period()
        assert made.current is first
        assert not told.done()
        file.write_text(FILE.replace("Frankfurt", "Berlin"))
        await period()
        await asyncio.wait_for(told, 5)
    assert made.current.regions[900].name == "Berlin"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
