"""From text to a definition: every mistake, each with its path and line."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import yaml

from agent.server.definition.model import AgentDefinition, Part

MAX_SIZE = 2 * 1024 * 1024
MAX_NODES = 50_000
MAX_DEPTH = 20
MAX_NUMBER = 2**31 - 1

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")

_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
"""How JSON may write one character: as two escapes."""

_STRING, _INTEGER, _BOOLEAN, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "bool", "null"))


@dataclass(frozen=True, slots=True)
class Mistake:
    """`line` counts from 1; `path` looks like `scripts[0].timeout`, empty for the whole file."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        where = f"line {self.line}"
        return f"{where}: {self.path}: {self.text}" if self.path else f"{where}: {self.text}"


class DefinitionError(ValueError):
    """A definition cannot be used."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


def read_definition(text: str) -> AgentDefinition:
    """The definition in a YAML or JSON text. Raises `DefinitionError` with all mistakes. Slow: use a thread."""
    if len(text) > MAX_SIZE:
        raise DefinitionError([Mistake("", 1, f"the definition is larger than {MAX_SIZE} bytes")])
    root = _compose(text)
    reader = _Reader()
    definition = reader.read(root, AgentDefinition, "", 0)
    if reader.mistakes:
        raise DefinitionError(sorted(set(reader.mistakes), key=lambda mistake: (mistake.line, mistake.path)))
    assert isinstance(definition, AgentDefinition)
    return definition


def _compose(text: str) -> yaml.Node:
    if text.lstrip()[:1] == "{":
        text = _json_as_yaml(text)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.problem, error.context)))
        raise DefinitionError([Mistake("", mark.line + 1 if mark else 1, f"this is no YAML: {reason}")]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DefinitionError([Mistake("", 1, f"this is no YAML: {error}")]) from error
    if root is None:
        raise DefinitionError([Mistake("", 1, "the definition is empty")])
    return root


def _json_as_yaml(text: str) -> str:
    """Puts right where JSON is not YAML, keeping the lines; a text that is no JSON stays as it is."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text  # then YAML says what is wrong
    text = text.replace("\t", " ")  # it may indent with tabs; within strings they are written as escapes
    return _SURROGATES.sub(lambda pair: pair[1] + json.loads(f'"{pair[2]}"'), text)


class _Reader:
    """Walks the nodes along the types of the model. What could not be read is None, and has left a mistake."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self._nodes = 0

    def _wrong(self, path: str, node: yaml.Node, text: str) -> None:
        self.mistakes.append(Mistake(path, node.start_mark.line + 1, text))

    def read(self, node: yaml.Node, kind: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:  # aliases make small texts large
            raise DefinitionError([*self.mistakes, Mistake(path, node.start_mark.line + 1, "too deep or too large")])
        if get_origin(kind) is Annotated:
            return self._duration(node, get_args(kind)[1], path)
        if get_origin(kind) in (Union, types.UnionType):  # of a kind and None
            if getattr(node, "tag", "") == _NULL:
                return None
            return self.read(node, get_args(kind)[0], path, depth)
        if get_origin(kind) is list:
            return self._list(node, get_args(kind)[0], path, depth)
        if get_origin(kind) is dict:
            return self._strings(node, path, depth)
        if get_origin(kind) is Literal:
            return self._choice(node, get_args(kind), path)
        if isinstance(kind, type) and issubclass(kind, Part):
            return self._part(node, kind, path, depth)
        return self._scalar(node, kind, path)

    def _part(self, node: yaml.Node, kind: type[Part], path: str, depth: int) -> Part | None:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(path, node, f"must be a mapping of keys and values, not {_kind(node)}")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        keys: dict[str, yaml.Node] = {}
        before = len(self.mistakes)
        for name, key, value in self._pairs(node, path):
            where = f"{path}.{name}" if path else name
            if name not in fields:
                self._wrong(where, key, f"unknown key{_suggestion(name, fields)}")
                continue
            keys[name] = key
            values[name] = self.read(value, fields[name].type, where, depth + 1)
        for name, field in fields.items():
            if field.required and name not in keys:
                self._wrong(path, node, f"{name} is missing")
        if len(self.mistakes) > before:
            return None
        part = kind(**values)
        for name, text in part.mistakes():
            self._wrong(f"{path}.{name}" if path else name, keys.get(name, node), text)
        return part

    def _pairs(self, node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(path, node, f"must be a mapping of keys and values, not {_kind(node)}")
            return
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = self._text(key) if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self._wrong(path, key, "a key must be a plain text")
            elif name in seen:
                self._wrong(f"{path}.{name}" if path else name, key, f"is there already in line {seen[name]}")
            else:
                seen[name] = key.start_mark.line + 1
                yield name, key, value

    def _list(self, node: yaml.Node, kind: Any, path: str, depth: int) -> list[Any] | None:
        if not isinstance(node, yaml.SequenceNode):
            self._wrong(path, node, f"must be a list, not {_kind(node)}")
            return None
        items = []
        seen: dict[str, int] = {}
        for index, item in enumerate(node.value):
            where = f"{path}[{index}]"
            value = self.read(item, kind, where, depth + 1)
            items.append(value)
            unique = getattr(kind, "unique", None)
            if unique is None or value is None:
                continue
            name = getattr(value, unique)
            if name in seen:
                self._wrong(f"{where}.{unique}", item, f"{name!r} is there already in line {seen[name]}")
            seen.setdefault(name, item.start_mark.line + 1)
        return items

    def _strings(self, node: yaml.Node, path: str, depth: int) -> dict[str, str]:
        return {name: self.read(value, str, f"{path}.{name}", depth + 1) for name, _, value in self._pairs(node, path)}

    def _choice(self, node: yaml.Node, choices: tuple[str, ...], path: str) -> str | None:
        text = self._scalar(node, str, path)
        if text is not None and text not in choices:
            known = ", ".join(choices)
            self._wrong(path, node, f"{text!r} is none of {known}{_suggestion(str(text), choices)}")
        return str(text)

    def _duration(self, node: yaml.Node, unit: str, path: str) -> int | None:
        text = self._text(node) if isinstance(node, yaml.ScalarNode) else None
        parts = _DURATION.findall(text or "")
        if text is not None and node.tag == _INTEGER and text.isdecimal():
            nanoseconds = int(text) * 10**9
        elif parts and "".join(number + name for number, name in parts) == text:
            nanoseconds = round(sum(float(number) * _UNITS[name] for number, name in parts))
        else:
            self._wrong(path, node, f"{text or _kind(node)!r} is no duration; it looks like 30s or 1m30s")
            return None
        if nanoseconds > MAX_NUMBER * 10**9:
            self._wrong(path, node, f"{text} is too long")
            return None
        if unit == "nanoseconds":
            return nanoseconds
        if nanoseconds % 10**9:
            self._wrong(path, node, f"{text} is not a whole number of seconds")
            return None
        return nanoseconds // 10**9

    def _scalar(self, node: yaml.Node, kind: Any, path: str) -> str | int | bool | None:
        if not isinstance(node, yaml.ScalarNode):
            self._wrong(path, node, f"must be {_NAMES[kind]}, not {_kind(node)}")
            return None
        text = self._text(node)
        if text is None or "\0" in text:
            self._wrong(path, node, "contains a character that is not allowed")
            return None
        if kind is str:
            if node.tag in (_INTEGER, _STRING):
                return text
            # Unquoted yes, no, 1.0 and empty values are not what was meant as text more often than not.
            self._wrong(path, node, f"must be a text: write {json.dumps(text, ensure_ascii=False)} with the quotes")
            return None
        if kind is bool and node.tag == _BOOLEAN and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind is int and node.tag == _INTEGER and re.fullmatch(r"-?\d{1,10}", text) and abs(int(text)) <= MAX_NUMBER:
            return int(text)
        self._wrong(path, node, f"must be {_NAMES[kind]}, not {text!r}")
        return None

    @staticmethod
    def _text(node: yaml.ScalarNode) -> str | None:
        """The text; None if it is no Unicode text."""
        text = str(node.value)
        try:
            text.encode()
        except UnicodeError:
            return None
        return text


_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if node.tag == _NULL else "a single value"


def _suggestion(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
