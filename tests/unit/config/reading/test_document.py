"""What YAML itself reads in two ways, or not at all: one line that names the place and the way out."""

from pathlib import Path

import pytest

from ray_distill.config.reading.document import parse, read_document
from ray_distill.errors import ConfigError


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb:\n\tc: 2\n", "line 3, column 1: .*indent with spaces: YAML allows no tabs there"),
        ("a: x: y\n", "line 1, column 5: mapping values are not allowed here; put a text with a colon into quotes"),
        ("a: {{ data }}\n", "placeholder {{ … }}, into quotes"),
        ("a: @x\n", "put a text that begins with this character into quotes"),
        ("a: *x\n", "put a text that begins with \\* into quotes"),
        ("a: !x y\n", "put a text that begins with ! into quotes"),
        ("a: 2026-13-40\n", "month must be in 1..12; put a text with the form of a date into quotes"),
        ("a: 1\n---\nb: 2\n", "a file has one campaign, so leave --- out"),
        ("a: [1, 2\n", "line 2, column 1: expected"),
        ("- a\n", "must be a mapping of sections, found list"),
        ("", "must be a mapping of sections, found nothing"),
    ],
)
def test_what_is_not_a_mapping_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    """The line, what was found there, and the usual reason."""
    with pytest.raises(ConfigError, match=says) as error:
        read_document(_written(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("2E5", 2e5), ("-.5e1", -5.0), ("1.0e-4", 1e-4), ("1e", "1e"), ("e3", "e3"), ("'1e-3'", "1e-3")],
)
def test_numbers_with_an_exponent_are_numbers(text: str, value: object) -> None:
    """PyYAML alone takes 1e-3 for a text."""
    assert parse(text) == value


@pytest.mark.parametrize(("text", "base"), [("010", 8), ("-07", 8), ("1:30", 60), ("1:30.5", 60)])
def test_a_number_in_another_base_is_a_mistake(tmp_path: Path, text: str, base: int) -> None:
    """YAML 1.1 and 1.2 disagree on its value."""
    found = read_document(_written(tmp_path, f"a: {{b: {text}}}\n"))
    assert f"{text} is read in base {base}" in found.mistakes["a.b"]


def test_plain_numbers_and_quoted_ones_are_no_mistakes(tmp_path: Path) -> None:
    """Zero, decimals, underscores, and what stands in quotes."""
    found = read_document(_written(tmp_path, "a: 0\nb: 0.5\nc: 1_000\nd: '010'\ne: 0x1F\nf: 1.0e-3\n"))
    assert found.mistakes == {}
    assert found.value == {"a": 0, "b": 0.5, "c": 1000, "d": "010", "e": 31, "f": 1e-3}


def test_a_key_that_is_set_twice_names_both_lines(tmp_path: Path) -> None:
    """PyYAML keeps the last in silence; the same key in two sections is fine."""
    found = read_document(_written(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\nd: {b: 4}\n"))
    assert found.mistakes == {"a.b": "is set twice, on line 2 and on line 4: leave one out"}


def test_places_are_lines_and_aliases_are_read_once(tmp_path: Path) -> None:
    """A bomb of aliases costs no time, and a byte-order mark no field."""
    bomb = "\ufeffa0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    found = read_document(_written(tmp_path, bomb))
    assert found.places["a0"] == "line 1" and found.places["a59"] == "line 60"
    assert len(found.places) < 300
