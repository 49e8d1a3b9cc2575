"""What clients write to find workspaces."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.api.workspace_search import Search, parse
from agent.server.errors import ApiError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", Search()),
        ("owner:me", Search(owner="mary")),
        ('owner:"me"', Search(owner="mary")),
        ("me/dev", Search(owner="mary", name="dev")),
        ("  Dev  status:Running ", Search(name="dev", status="running")),
        ("owner:", None),
        ("color:red", None),
        ("a b", None),
        ('name:"a', None),
    ],
)
def test_searches(text: str, found: Search | None) -> None:
    if found is not None:
        assert parse(text, "mary") == found
        return
    with pytest.raises(ApiError) as refused:
        parse(text, "mary")
    assert [mistake.field for mistake in refused.value.body.validations] == ["q"]


@given(st.text() | st.text('abm:"/ \t-', max_size=30))
def test_any_text_is_a_search_or_refused(text: str) -> None:
    with contextlib.suppress(ApiError):
        parse(text, "mary")
