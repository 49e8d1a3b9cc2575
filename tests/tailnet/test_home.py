"""Home region and published addresses."""

from __future__ import annotations

import ipaddress
from types import MappingProxyType

import pytest

from agent.protocol.ip import mapped
from agent.tailnet.derp_map import DerpMap, Node, Region
from agent.tailnet.home import MEMORY, HomeChooser
from agent.tailnet.netcheck import by_region, choose_addresses


def derp_map(*regions: int, stun_only: tuple[int, ...] = (), scores: dict[int, float] | None = None) -> DerpMap:
    made = {
        number: Region(number, nodes=(Node(f"{number}a", number, "relay.example", stun_only=number in stun_only),))
        for number in (*regions, *stun_only)
    }
    return DerpMap(MappingProxyType(made), MappingProxyType(scores or {}))


@pytest.fixture
def chooser() -> HomeChooser:
    return HomeChooser(lambda able: able[-1])


@pytest.mark.spec("tailnet", 32)
def test_the_nearest_region_that_has_a_relay(chooser: HomeChooser) -> None:
    regions = derp_map(1, 2, stun_only=(3,))
    assert chooser.home(regions, {1: 0.050, 2: 0.020, 3: 0.001}, 0, 0) == 2


@pytest.mark.spec("tailnet", 32)
def test_small_differences_do_not_move(chooser: HomeChooser) -> None:
    regions = derp_map(1, 2)
    assert chooser.home(regions, {1: 0.020, 2: 0.050}, 0, 0) == 1
    # Faster by less than 10 ms, then by more but not below two thirds, then by enough.
    assert HomeChooser(min).home(regions, {1: 0.020, 2: 0.011}, 1, 0) == 1
    assert HomeChooser(min).home(regions, {1: 0.100, 2: 0.070}, 1, 0) == 1
    assert HomeChooser(min).home(regions, {1: 0.100, 2: 0.060}, 1, 0) == 2


def test_the_best_of_five_minutes_counts(chooser: HomeChooser) -> None:
    regions = derp_map(1, 2)
    chooser.home(regions, {1: 0.020, 2: 0.050}, 0, 0)
    assert chooser.home(regions, {1: 0.300, 2: 0.250}, 2, 10) == 1
    assert chooser.home(regions, {1: 0.300, 2: 0.050}, 1, 10 + MEMORY + 1) == 2


def test_scores_weigh(chooser: HomeChooser) -> None:
    assert chooser.home(derp_map(1, 2, scores={1: 10.0, 2: -1}), {1: 0.020, 2: 0.050}, 0, 0) == 2


def test_nothing_measured_keeps_the_home_or_picks_one(chooser: HomeChooser) -> None:
    assert chooser.home(derp_map(1, 2), {}, 1, 0) == 1
    assert chooser.home(derp_map(1, 2), {}, 7, 0) == 2
    assert chooser.home(derp_map(stun_only=(3,)), {}, 0, 0) == 0


def test_latencies_by_region() -> None:
    assert by_region({"1-v4": 0.3, "1-v6": 0.2, "20-v4": 0.1}) == {1: 0.2, 20: 0.1}


@pytest.mark.parametrize(
    ("have", "published"),
    [
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"]),
        (["127.0.0.1", "169.254.3.4", "fd12::1", "fe80::1"], ["169.254.3.4", "fd12::1"]),
        (["127.0.0.1", "192.168.1.2", "169.254.3.4", "2001:db8::1", "fe80::1"], ["192.168.1.2", "2001:db8::1"]),
        (["fd60:627a:a42b::53", "0.0.0.0", "ff02::1"], []),
    ],
)
def test_which_addresses_are_published(have: list[str], published: list[str]) -> None:
    assert choose_addresses(have) == [mapped(ipaddress.ip_address(text).packed) for text in published]
