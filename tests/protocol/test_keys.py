"""Keys against the vectors of tailnet.md §11."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.protocol import keys

PAIRS = [
    (
        "1011111111111111111111111111111111111111111111111111111111111151",
        "7b4e909bbe7ffe44c465a220037d608ee35897d31ef972f07f74892cb0f73f13",
    ),
    (
        "2022222222222222222222222222222222222222222222222222222222222262",
        "0faa684ed28867b97f4a6a2dee5df8ce974e76b7018e3f22a1c4cf2678570f20",
    ),
    (
        "3033333333333333333333333333333333333333333333333333333333333373",
        "7b0d47d93427f8311160781c7c733fd89f88970aef490d8aa0ee19a4cb8a1b14",
    ),
    (
        "4044444444444444444444444444444444444444444444444444444444444444",
        "ff2ee45601ec1b67310c7790404585ae697331eee1c1f8cf2419731c1fff3e6b",
    ),
    (
        "5055555555555555555555555555555555555555555555555555555555555555",
        "38ab664bd86f77d7e66bdd9ae0792913a94fd8b33a1260027e4b46c1f4884c67",
    ),
]
AGENT_NODE, CLIENT_NODE, AGENT_DISCO, CLIENT_DISCO, DERP_SERVER = (
    (bytes.fromhex(private), bytes.fromhex(public)) for private, public in PAIRS
)
LOW_ORDER = bytes(32)


@pytest.mark.parametrize(("private", "public"), PAIRS)
def test_public_keys(private: str, public: str) -> None:
    assert keys.clamp(bytes.fromhex(private)) == bytes.fromhex(private)
    assert keys.public_key(bytes.fromhex(private)) == bytes.fromhex(public)


def test_box_keys() -> None:
    for ours, theirs in ((AGENT_NODE, DERP_SERVER), (DERP_SERVER, AGENT_NODE)):
        assert keys.box_key(ours[0], theirs[1]).hex() == (
            "43f0290f55a880ab9268ec44df1ddceff0d49b8835a34fa16572149e676d8613"
        )
    assert keys.box_key(CLIENT_DISCO[0], AGENT_DISCO[1]).hex() == (
        "c512924888c2212f68dd352e9c1e6ac75632b3ceef30b26fa3cdecbf041e2107"
    )


def test_a_key_of_low_order_shares_nothing() -> None:
    with pytest.raises(keys.KeyFormatError, match="no shared secret"):
        keys.box_key(AGENT_NODE[0], LOW_ORDER)


@given(st.binary(min_size=32, max_size=32))
def test_generated_keys_are_clamped(random: bytes) -> None:
    private = keys.generate(lambda size: random[:size])
    assert private[0] % 8 == 0
    assert private[31] & 0xC0 == 0x40
    assert keys.clamp(private) == private
