"""Definitions: what is read, and that every mistake is told with its path and line."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.server.definition import AgentDefinition, DefinitionError, read_definition, warnings

EXAMPLE = Path(__file__).parents[2] / "scripts" / "examples" / "workspace.yaml"


def mistakes(text: str) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        read_definition(dedent(text))
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_example_is_fine() -> None:
    definition = read_definition(EXAMPLE.read_text())
    assert definition.name == "quickstart"
    assert warnings(definition) == []


def test_a_small_one_gets_defaults() -> None:
    definition = read_definition("name: dev")
    assert definition == AgentDefinition(name="dev")
    assert definition.connection_timeout == 120


def test_json_with_tabs_and_escaped_pairs() -> None:
    assert read_definition('{\n\t"name": "dev",\n\t"env": {"A": "\\ud83d\\ude00\\t"}\n}').env == {"A": "😀\t"}


def test_durations() -> None:
    text = """
        name: dev
        connection_timeout: 1m30s
        scripts:
          - {display_name: a, script: x, run_on_start: true, timeout: 500ms}
          - {display_name: b, script: x, run_on_start: true, timeout: 30}
        metadata:
          - {key: k, script: x, interval: 1h}
    """
    definition = read_definition(dedent(text))
    assert definition.connection_timeout == 90
    assert [script.timeout for script in definition.scripts] == [500_000_000, 30 * 10**9]
    assert definition.metadata[0].interval == 3600


def test_all_mistakes_at_once_with_path_and_line() -> None:
    text = """\
        name: -bad-
        script: []
        env:
          A: true
          B: 1
          B: 2
        scripts:
          - display_name: one
            script: ''
            timeout: 3x
          - display_name: one
            script: echo
            run_on_start: yes
          - just text
        metadata:
          - script: uptime
            interval: 1500ms
        apps:
          - {slug: A b, url: x}
          - {slug: web, helthcheck: {url: http://x}}
        resources: {memory: {threshold: 101}}
    """
    assert mistakes(text) == [
        "line 2: script: unknown key; did you mean scripts?",
        'line 4: env.A: must be a text: write "true" with the quotes',
        "line 6: env.B: is there already in line 5",
        "line 10: scripts[0].timeout: '3x' is no duration; it looks like 30s or 1m30s",
        "line 13: scripts[1].run_on_start: must be true or false, not 'yes'",
        "line 14: scripts[2]: must be a mapping of keys and values, not a single value",
        "line 16: metadata[0]: key is missing",
        "line 17: metadata[0].interval: 1500ms is not a whole number of seconds",
        "line 19: apps[0].slug: must be of lower-case letters, digits and single hyphens, at most 32 characters",
        "line 20: apps[1].helthcheck: unknown key; did you mean healthcheck?",
        "line 21: resources.memory.threshold: is a percentage, from 0 to 100",
    ]


def test_what_types_do_not_say() -> None:
    text = """\
        name: dev
        scripts:
          - {display_name: one, script: echo}
          - {display_name: one, script: echo, run_on_stop: true, start_blocks_login: true}
          - {display_name: one, script: echo, run_on_stop: true}
        secrets:
          - {value: x}
        apps:
          - {slug: a, open_in: tap, url: x}
          - {slug: b}
        troubleshooting_url: ftp://x
    """
    assert mistakes(text) == [
        "line 3: scripts[0].script: never runs: set run_on_start, run_on_stop or cron",
        "line 4: scripts[1].display_name: 'one' is there already in line 3",
        "line 4: scripts[1].start_blocks_login: only a script with run_on_start can block the login",
        "line 5: scripts[2].display_name: 'one' is there already in line 3",
        "line 7: secrets[0].env: a secret needs env (name of a variable) or file (a path)",
        "line 9: apps[0].open_in: 'tap' is none of slim-window, tab; did you mean tab?",
        "line 10: apps[1].url: an app has either a url or a command",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the definition is empty"),
        ("- a", "line 1: must be a mapping"),
        ("name: [", "this is no YAML"),
        ("name: 'a\nb: c", "this is no YAML"),
        ("name: \x07", "this is no YAML"),
        ('{"name": "\\ud800"}', "invalid Unicode character escape"),
        ('{"name": "\\u0000"}', "character that is not allowed"),
        ("[" * 5000, "line 1"),
        ("name: x\n? [a]\n: b", "line 2: a key must be a plain text"),
        ("name: &a {a: *a}", "line 1"),
        ("name: !!python/object:os.system x", "name"),
    ],
)
def test_texts_that_are_none(text: str, message: str) -> None:
    assert message in "\n".join(mistakes(text))


def test_aliases_do_not_blow_up() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert "unknown key" in "\n".join(mistakes(bomb))
    scripts = "{display_name: x, script: x, run_on_start: true}"
    wide = f"name: x\nscripts:\n- &s {scripts}\n" + "- *s\n" * 60_000
    assert mistakes(wide)[-1].endswith("too deep or too large")


def test_secrets_do_not_show() -> None:
    definition = read_definition("name: dev\nsecrets: [{env: TOKEN, value: s3cret}]")
    assert "s3cret" not in repr(definition)
    assert definition.secrets[0].value == "s3cret"


@pytest.mark.parametrize(
    ("cron", "warning"),
    [
        ("*/5 * * * * *", None),
        ("@daily", None),
        ("CRON_TZ=Europe/Berlin 0 0 9 * * mon", None),
        ("* * * *", "found 4"),
        ("0 9 * * 1", "first one counts seconds"),
        ("CRON_TZ=Mars/Base 0 0 9 * * *", "time zone 'Mars/Base' is not known"),
        ("TZ=../../etc/passwd 0 0 9 * * *", "is not known"),
    ],
)
def test_odd_cron_lines(cron: str, warning: str | None) -> None:
    definition = read_definition(
        json.dumps({"name": "x", "scripts": [{"display_name": "a", "script": "x", "cron": cron}]})
    )
    found = warnings(definition)
    assert found == [] if warning is None else warning in found[0]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_KEYS = st.sampled_from(
    ["name", "env", "scripts", "apps", "metadata", "secrets", "resources", "os", "connection_timeout"]
)


def _read(text: str) -> None:
    try:
        read_definition(text)
    except DefinitionError as error:
        found = error.mistakes
    else:
        return
    assert found
    assert all(mistake.line >= 1 for mistake in found)


@given(st.dictionaries(_KEYS, _VALUES))
def test_any_json_is_read_or_refused(value: dict[str, object]) -> None:
    _read(json.dumps(value))


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    _read(text)
