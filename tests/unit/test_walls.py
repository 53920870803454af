"""Outside `tasks/` nothing decides by the task: no name, vocabulary, modality, metric or attribute of a family."""

import ast
from collections.abc import Iterator
from pathlib import Path

from ray_distill.tasks.catalogue import TASKS

ROOT = Path(__file__).parents[2] / "ray_distill"
#: Folders that may name tasks: where they are defined, and what shows or fakes them.
FREE = ("tasks", "examples", "testing")
MODALITIES = {"text", "image", "chat", "pair", "audio"}
METRICS = {metric for task in TASKS.values() for metric in task.answers.names}


def _is_vocabulary(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute | ast.Name) and getattr(node, "attr", getattr(node, "id", "")) == "vocabulary"


#: Constants that facets declare, such as ``FAMILY``: data to pass on, not flags to test.
FACET_CONSTANTS = frozenset(
    node.target.id
    for name in ("tasks/facets.py", "students/data/answer_format.py")
    for node in ast.walk(ast.parse((ROOT / name).read_text()))
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.isupper()
)


def _is_of_family(node: ast.expr) -> bool:
    """Return whether this is an attribute of a family (``x.answers.y``) or a constant of a facet."""
    if not isinstance(node, ast.Attribute):
        return False
    owner: ast.expr = node.value
    while isinstance(owner, ast.Attribute) and owner.attr != "answers":
        owner = owner.value
    return node.attr in FACET_CONSTANTS or (isinstance(owner, ast.Attribute) and owner.attr == "answers")


def _tests(tree: ast.AST) -> Iterator[ast.expr]:
    """Expressions whose truth decides something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.BoolOp):
            yield from node.values
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node.operand
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def _texts(node: ast.expr) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def _wrong_comparison(node: ast.Compare) -> bool:
    sides = [node.left, *node.comparators]
    texts = set[str]().union(*(_texts(side) for side in sides if isinstance(side, ast.Constant | ast.Tuple | ast.Set)))
    identity = any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
    zero = any(isinstance(side, ast.Constant) and side.value in (0, None) for side in sides)
    membership = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
    metric = membership and isinstance(node.left, ast.Constant) and node.left.value in METRICS
    return bool(
        texts & (set(TASKS) | MODALITIES)
        or metric
        or any(_is_of_family(side) for side in sides)
        or ((identity or zero) and any(_is_vocabulary(side) for side in sides))
    )


def wrong_lines(source: str) -> list[int]:
    """Lines that decide by the task."""
    tree = ast.parse(source)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = {test.lineno for test in _tests(tree) if _is_vocabulary(test) or _is_of_family(test)}
    for node in ast.walk(tree):
        named = isinstance(node, ast.Constant) and node.value in TASKS and id(node) not in documents
        if named or (isinstance(node, ast.Compare) and _wrong_comparison(node)):
            found.add(node.lineno)
    return sorted(found)


def test_the_check_finds_each_kind() -> None:
    """A task's name anywhere; vocabularies as flags; modalities and metrics compared. Plain uses pass."""
    for line in (
        'x = "causal_lm"',
        "if model.vocabulary: pass",
        "x = 1 if vocabulary is None else 2",
        'if column == "image": pass',
        'if "perplexity" in metrics: pass',
        'x = form in ("text", "chat")',
        "if task.answers.per_token: pass",
        "x = 1 if get_task(name).answers.judge.DAMAGED else 2",
        'x = get_task(name).answers.truth == "none"',
        'if family.FAMILY == "bernoulli": pass',
        "y = [x for x in z if not facet.FUSED]",
    ):
        assert wrong_lines(line) == [1], line
    for line in (
        'x = rows["text"]',
        "x = model.vocabulary * 4",
        'x = metrics["nll"]',
        '"""causal_lm"""',
        "if task.answers.f(3): pass",
        "f(x.FUSED)",
    ):
        assert wrong_lines(line) == [], line


def test_nothing_outside_tasks_decides_by_the_task() -> None:
    """No file has such a line."""
    found = {
        str(path.relative_to(ROOT)): wrong_lines(path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in FREE
    }
    assert {name: lines for name, lines in found.items() if lines} == {}
