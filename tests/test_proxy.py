from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from agent.proxy import ProxyError, proxy_for

PROXY = "http://proxy.example.com:3128"


def through(url: str, no_proxy: str = "", **environment: str) -> str | None:
    found = proxy_for(URL(url), {"HTTPS_PROXY": PROXY, "NO_PROXY": no_proxy, **environment})
    return None if found is None else str(found)


def test_the_scheme_of_the_url_chooses_the_variable() -> None:
    assert through("https://coder.example.com") == PROXY
    assert through("wss://coder.example.com") == PROXY
    assert through("http://coder.example.com") is None
    assert through("http://coder.example.com", http_proxy="other:80") == "http://other"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_loopback_is_direct(host: str) -> None:
    assert through(f"https://{host}:8443") is None


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("example.com", True),
        ("coder.example.com", True),
        (".example.com", True),
        ("*.example.com", True),
        ("EXAMPLE.com , other", True),
        ("coder.example.com:443", True),
        ("coder.example.com:80", False),
        (".coder.example.com", False),
        ("ample.com", False),
        ("example", False),
        ("10.0.0.0/8", False),
        ("", False),
        (",,", False),
    ],
)
def test_names_in_no_proxy(no_proxy: str, direct: bool) -> None:
    assert (through("https://coder.example.com", no_proxy) is None) == direct


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("10.1.2.3", True),
        ("10.0.0.0/8", True),
        ("10.1.2.3:443", True),
        ("10.1.2.3:444", False),
        ("10.1.2.0/33", False),
        ("fd00::/8", False),
        ("2.3", False),
    ],
)
def test_addresses_in_no_proxy(no_proxy: str, direct: bool) -> None:
    assert (through("https://10.1.2.3", no_proxy) is None) == direct


def test_ipv6_addresses_in_no_proxy() -> None:
    assert through("https://[fd00::1]", "fd00::/8") is None
    assert through("https://[fd00::1]", "[fd00::1]") is None
    assert through("https://[fd00::1]", "fd00::2") == PROXY


def test_an_unusable_proxy_is_named_without_its_password() -> None:
    with pytest.raises(ProxyError, match="HTTPS_PROXY names a socks5 proxy") as caught:
        through("https://coder.example.com", HTTPS_PROXY="socks5://user:hunter2@proxy:1080")
    assert "hunter2" not in str(caught.value)
    for host in ("a..b", "xn--a", f"{'a' * 64}.com"):
        with pytest.raises(ProxyError, match="HTTPS_PROXY is not the URL of a proxy"):
            through("https://coder.example.com", HTTPS_PROXY=f"http://{host}:3128")


@given(st.text(), st.text())
def test_any_variables_give_a_proxy_or_the_typed_error(proxy: str, no_proxy: str) -> None:
    try:
        found = proxy_for(URL("https://coder.example.com"), {"HTTPS_PROXY": proxy, "NO_PROXY": no_proxy})
    except ProxyError:
        return
    assert found is None or found.host
