"""The texts of the package are plain technical English: docstrings, messages, identifiers and READMEs.

The word lists are those of the house rules. Code in backticks is not text; *held out* and the verdict HOLD are terms.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ray_distill"
README_LINES, README_COLUMNS, FIRST_LINE = 200, 100, 90

BEGINNINGS = re.compile(r"(Of|What|Who|Whoever|Whose|Where|By|Behind)\b")
#: What people do and programs do not.
VERBS = {
    "tell": ("tell", "tells", "told", "telling"),
    "say": ("say", "says", "said", "saying"),
    "hear": ("hear", "hears", "heard"),
    "ask": ("ask", "asks", "asked", "asking"),
    "look": ("look", "looks", "looked", "looking"),
    "know": ("know", "knows", "knew", "knowing"),
    "want": ("want", "wants", "wanted", "wanting"),
    "hold": ("hold", "holds", "held", "holding"),
    "let go": ("let go", "lets go"),
}
SPOKEN = re.compile(r"\b(" + "|".join(form for forms in VERBS.values() for form in forms) + r")\b")
TERMS = re.compile(r"`[^`]*`|\bheld[- ]out\b|\bhold[- ]out\b|https?://\S+")
#: Parts of identifiers that are no words of a program's.
SPOKEN_NAMES = "told|said|lately|looked|looks|asks|asked|ask|asking|held|ours|theirs|tell|tells|say|says|wants|wanted"
IDENTIFIERS = frozenset(SPOKEN_NAMES.split("|"))


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield _where(path, node), text


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Strings of more than two words: docstrings, field docstrings, descriptions and messages."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 1:
            yield _where(path, node), node.value


def _names(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield _where(path, node), node.id
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield _where(path, node), node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield _where(path, node), node.name


def _spoken(text: str) -> str | None:
    found = SPOKEN.search(TERMS.sub("", text))
    return found[0] if found else None


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_in_plain_technical_english(path: Path) -> None:
    """Docstrings begin with a short sentence, programs report and read, and names follow the same words."""
    long = [where for where, text in _docstrings(path) if len(text.splitlines()[0]) > FIRST_LINE]
    begun = [where for where, text in _docstrings(path) if BEGINNINGS.match(text)]
    spoken = [f"{where} {word!r}" for where, text in _texts(path) if (word := _spoken(text))]
    named = [f"{where} {name}" for where, name in _names(path) if IDENTIFIERS & set(name.lower().split("_"))]
    assert {
        "first line too long": long,
        "begins with a clause": begun,
        "words": spoken,
        "names": sorted(set(named)),
    } == {"first line too long": [], "begins with a clause": [], "words": [], "names": []}


def test_the_readme_can_be_read_in_one_sitting() -> None:
    """200 lines of 100 columns."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    prose = re.sub(r"```bash.*?```", "", text, flags=re.S)  # a command is one line, however long
    assert [line for line in prose.splitlines() if len(line) > README_COLUMNS] == []


@pytest.mark.parametrize(
    "path", sorted([ROOT / "README.md", *ROOT.glob("ray_distill/**/README.md")]), ids=lambda path: path.parent.name
)
def test_a_readme_uses_the_same_words(path: Path) -> None:
    """No sentence begins with a clause, and programs do not speak."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    begun = re.findall(r"(?:^|[.!?:]\s|[-*]\s)((?:Of|Whoever|Behind)\s[^\n]{,40})", text)
    spoken = sorted({found[0] for line in text.splitlines() if (found := SPOKEN.search(TERMS.sub("", line)))})
    assert (begun, spoken) == ([], [])
