"""Parse a YAML file with the lines of its fields; refuse what YAML reads in two ways."""

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ray_distill.errors import ConfigError
from ray_distill.redact import HIDDEN, redact

#: Numbers of YAML 1.2 that PyYAML, which reads YAML 1.1, takes for texts: 1e-3, 2E5, .5e1.
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
#: Whole numbers that YAML 1.1 reads in base 8 or 60, and YAML 1.2 in base 10 or as a text.
_OTHER_BASE = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$")
#: A secret as YAML has it, without quotes.
_SECRET_LINE = re.compile(r"((?:key|secret|token|password|passwd|authorization|signature)\s*:\s*)\S.*", re.IGNORECASE)
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")

#: Limits of a campaign's file: bytes; values, once every alias stands for all that it repeats; sections in sections.
MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 20, 200_000, 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads numbers with an exponent and no point."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True, kw_only=True)
class Document:
    """The values of a file, and where and how each is written."""

    value: Any
    places: dict[str, str] = field(default_factory=dict)
    """Dotted path to ``line 7``, or ``--set``."""
    written: dict[str, str] = field(default_factory=dict)
    """Dotted path to the text of a scalar without quotes."""
    mistakes: dict[str, str] = field(default_factory=dict)
    """Dotted path to what is wrong with the text itself."""


def parse(text: str) -> Any:
    """Return the value of a YAML text; raise PyYAML's errors, or ValueError for a value."""
    return _load(text)[1]


def read_document(path: str | Path) -> Document:
    """Read a YAML file of one mapping.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping; the message names the line.
    """
    text = _read(path)
    try:
        node, value = _load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_problem(error, text)}") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if node is None or not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise ConfigError(f"{path} must be a mapping of sections, found {found}")
    document = Document(value=value)
    for name, item in _items(node, "", set()):
        _note(document, name, item)
    return document


def _read(path: str | Path) -> str:
    """Return the text of a file, of which no more is read than a campaign may have."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{path} has more than {MOST_BYTES:,} bytes, which no campaign has: name a campaign's file"
            )
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # a path with a zero byte, bytes that are not UTF-8
        raise ConfigError(f"cannot read the config {path}: {error}") from error


def _load(text: str) -> tuple[yaml.Node | None, Any]:
    """Return the node and the value of a YAML text.

    Raises:
        yaml.YAMLError: as PyYAML.
        ValueError: a value has a wrong form, or aliases and nesting exceed the limits.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _count(node, {}, 0)
        return node, _construct(loader, node)
    except RecursionError as error:
        raise ValueError(f"sections are nested more than {MOST_DEPTH} deep, or contain themselves") from error
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (KeyError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(f"a value is not of the type that its tag names ({error})") from error
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has more than 4,300 digits") from error
        raise ValueError(f"{error}; put a text with the form of a date into quotes") from error


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return how many values a node has, where an alias counts as all that it repeats.

    Raises:
        RecursionError: nodes are nested too deeply, or contain themselves.
        ValueError: there are too many values.
    """
    if depth > MOST_DEPTH:
        raise RecursionError
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = [one for child in children for one in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_count(one, known, depth + 1) for one in inner)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(
            f"line {node.start_mark.line + 1}: aliases repeat values until there are more than {MOST_VALUES:,}"
        )
    return known[id(node)]


def _note(document: Document, name: str, node: yaml.Node) -> None:
    line = f"line {node.start_mark.line + 1}"
    if name in document.places:
        document.mistakes[name] = f"is set twice, on {document.places[name]} and on {line}: leave one out"
        return
    document.places[name] = line
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        document.written[name] = node.value
        if node.tag in _NUMBERS and _OTHER_BASE.match(node.value):
            document.mistakes[name] = (
                f"{node.value} is read in base {60 if ':' in node.value else 8}: write a number without leading zeros "
                "and colons, or put it into quotes"
            )


def _items(node: yaml.Node, prefix: str, seen: set[int]) -> Iterator[tuple[str, yaml.Node]]:
    """Yield dotted paths and nodes; what an alias repeats is yielded where it is first written."""
    if id(node) in seen:
        return
    seen.add(id(node))
    pairs: Iterator[tuple[Hashable, yaml.Node]] = iter(())
    if isinstance(node, yaml.MappingNode):
        pairs = ((key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
    elif isinstance(node, yaml.SequenceNode):
        pairs = iter(enumerate(node.value))
    for key, value in pairs:
        name = f"{prefix}{key}"
        yield name, value
        yield from _items(value, f"{name}.", seen)


def _problem(error: yaml.YAMLError, text: str) -> str:
    """Describe a syntax error in one line: where, what, and the usual reason."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    if mark is None:
        return " ".join(str(problem).split())
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    shown = _SECRET_LINE.sub(rf"\1{HIDDEN}", redact(line.strip()))[:80].replace("\t", "⇥")
    advice = next((advice for sign, advice in _REASONS.items() if sign in problem), "")
    if "\t" in line[: len(line) - len(line.lstrip())]:
        advice = "; indent with spaces: YAML allows no tabs there"
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{advice}; found: {shown}"


_REASONS: Mapping[str, str] = {
    "\\t": "; indent with spaces: YAML allows no tabs there",
    "mapping values are not allowed": "; put a text with a colon into quotes, or check the indentation",
    "unhashable key": "; put a text in braces, such as a placeholder {{ … }}, into quotes",
    "could not determine a constructor": "; put a text that begins with ! into quotes",
    "cannot start any token": "; put a text that begins with this character into quotes",
    "found another document": "; a file has one campaign, so leave --- out",
    "undefined alias": "; put a text that begins with * into quotes",
}
