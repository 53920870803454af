"""What YAML itself reads in two ways, or not at all: one line that names the place and the way out."""

from pathlib import Path

import pytest
import yaml

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


def _bomb(levels: int) -> str:
    """Return lists of aliases that double what they repeat, level by level."""
    return "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, levels))


def test_places_are_lines_and_aliases_are_read_once(tmp_path: Path) -> None:
    """Aliases that repeat some values cost no time, and a byte-order mark no field."""
    found = read_document(_written(tmp_path, f"\ufeff{_bomb(12)}"))
    assert found.places["a0"] == "line 1" and found.places["a11"] == "line 12"
    assert len(found.places) < 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_bomb(60), "line 17: aliases repeat values until there are more than 200,000"),
        (
            "x0: &x0 {a: 1}\n"
            + "".join(f"x{n}: &x{n}\n  <<: [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 12)),
            "aliases repeat values until",
        ),
        ("a: " + "[" * 400 + "]" * 400, "nested more than 50 deep, or contain themselves"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested more than 50 deep, or contain themselves"),
        ("a: &a\n  <<: *a\n", "nested more than 50 deep, or contain themselves"),
        ("a: &a [*a]\n", "nested more than 50 deep, or contain themselves"),
        ("a: &a {b: {c: *a}}\n", "nested more than 50 deep, or contain themselves"),
        (f"a: {'9' * 5000}\n", "a number has more than 4,300 digits"),
        ("a: !!bool x\n", "a value is not of the type that its tag names"),
        ("a: !!timestamp x\n", "a value is not of the type that its tag names"),
        ("a: !!python/object/apply:os.system ['id']\n", "could not determine a constructor"),
        ("a: {<<: 3}\n", "expected a mapping or list of mappings for merging"),
        (f"a: 1\n#{'x' * (1 << 20)}", "has more than 1,048,576 bytes, which no campaign has"),
    ],
)
def test_a_file_that_would_exhaust_the_machine_is_refused_at_once(tmp_path: Path, text: str, says: str) -> None:
    """Before a value is made of it: bombs, loops, depth and size are bounded, in the file and in an override."""
    path = _written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        read_document(path)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 500
    if len(text) < 10_000:
        with pytest.raises((ValueError, yaml.YAMLError), match=says):
            parse(text)


@pytest.mark.parametrize("data", [b"campaign: \xe9\n", "campaign: c\n".encode("utf-16"), b"campaign: a\0b\n"])
def test_a_file_that_is_not_a_text_is_refused(tmp_path: Path, data: bytes) -> None:
    """Other encodings, and bytes that no YAML has."""
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        read_document(path)


@pytest.mark.parametrize("path", ["/dev/zero", "/tmp", "/dev/null", "no/such", "a\0b"])
def test_a_path_that_is_not_a_file_is_refused(path: str) -> None:
    """No more is read of an endless one than a campaign may have."""
    with pytest.raises(ConfigError):
        read_document(path)
