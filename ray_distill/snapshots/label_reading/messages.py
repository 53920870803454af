"""Word the refusals of label columns: values, readings, and the field that decides."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ray_distill.snapshots.label_reading.spelling import same_spelling

#: Values shown in a message, and characters of each: a wrong column may have long private texts.
SHOWN, LETTERS = 8, 40


def cut(value: str) -> str:
    """Return a value, shortened where it is long."""
    return value if len(value) <= LETTERS else value[: LETTERS - 1] + "…"


def shown(value: str) -> str:
    """Return a value in quotes, shortened where it is long."""
    return repr(cut(value))


def counted(rows: Mapping[str, int], most: int = SHOWN) -> str:
    """Return the commonest values with their rows, and how many are left out."""
    order = sorted(rows, key=lambda value: (-rows[value], value))
    texts = [f"{shown(value)} ({rows[value]:,} row{'' if rows[value] == 1 else 's'})" for value in order[:most]]
    return ", ".join([*texts, *([f"and {len(order) - most:,} more"] if len(order) > most else [])])


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return at most so many names, and how many are left out."""
    names = list(names)
    text = ", ".join(shown(name) for name in names[:most])
    return f"{text} and {len(names) - most:,} more" if len(names) > most else text or "none"


def two_readings(by_name: Mapping[str, str], by_index: Mapping[str, str], rows: Mapping[str, int], section: str) -> str:
    """Word labels that are indices, while some are also names of other classes."""

    def reading(chosen: Mapping[str, str], other: Mapping[str, str]) -> str:
        left = {value: rows[value] for value in other if value not in chosen}
        pairs = ", ".join(f"{value} → {name!r}" for value, name in sorted(chosen.items())[:SHOWN])
        return pairs + (f", not a class: {counted(left)}" if left else "")

    return (
        f"{section}.label: the labels have two readings. As indices into the classes, counted from 0: "
        f"{reading(by_index, by_name)}. As names of classes: {reading(by_name, by_index)}. "
        f"Set {section}.label_values to indices or to names"
    )


def minus_and_plus(section: str) -> str:
    """Word labels that are −1 and 1 alone."""
    return (
        f"{section}.label: the only labels are -1 and 1, so -1 is a class, or means no label. Two classes: list "
        f'them as snapshot.classes: ["-1", "1"]; no label: set {section}.label_missing: ["-1"]'
    )


def doubtful_marker(value: str, section: str) -> str:
    """Word a value that is a class or a missing label."""
    return (
        f"{section}.label: the value {value!r} is a class, or means no label. No label: set "
        f'{section}.label_missing: ["{value}"]; a class: list all classes in snapshot.classes, or set '
        f"{section}.label_missing: []"
    )


def rounded_number(value: str, field: str) -> str:
    """Word ids that were stored as floats."""
    return (
        f"{field}: the label {value} is a number that has lost its last digits, so that different ids became one: "
        "store the labels as integers or as texts in the source"
    )


def fractions(values: Sequence[str], field: str) -> str:
    """Word a column of numbers to predict."""
    return (
        f"{field}: {len(values):,} different fractions such as {', '.join(values[:3])} are numbers to predict, and "
        "the task reads classes: name a column of classes, or turn the numbers into classes in the source"
    )


def indices_of_nothing(section: str) -> str:
    """Word indices where no class has a name."""
    return f"{section}.label_values is indices, and no class has a name: list the names in order in snapshot.classes"


def alike(one: str, other: str, difference: str, *, field: str) -> str:
    """Word two found classes that hardly differ."""
    return (
        f"{field}: {one!r} and {other!r} {difference}. Give one class one name in the source; if both are classes, "
        "list all of them in snapshot.classes"
    )


def two_kinds(numbers: Sequence[str], words: Sequence[str], field: str) -> str:
    """Word a column that has names in some rows and, as it seems, their indices in others."""
    return (
        f"{field}: some labels are the integers {numbers[0]} to {numbers[-1]}, and as many are words "
        f"({listed(words)}), so the integers may be indices of the words. Give one class one name in the source; if "
        "all of these are classes, list all of them in snapshot.classes"
    )


def counts_from_one(classes: int, first: str, section: str) -> str:
    """Word indices that start at 1."""
    return (
        f"{section}.label: the labels go up to {classes} for {classes} classes and 0 is missing, so they count from 1, "
        f"and indices count from 0 (0 is {first!r}): subtract 1 in the source, or write the names of the classes"
    )


def other_kinds(integers: str, words: str) -> str:
    """Word sources that name the classes differently."""
    return (
        f"{integers} has integers and {words} has words, and no class has a name that both refer to: list the classes "
        "in snapshot.classes, in the order of the integers"
    )


class Named(Protocol):
    """Class names, and the place that they were read from."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""

    @property
    def origin(self) -> str:
        """Return the place."""

    @property
    def generic(self) -> bool:
        """Return whether the names only number the classes."""


def not_a_class(unknown: Mapping[str, int], known: Named, section: str) -> str:
    """Word the values that are not a class, with what each would need."""
    classes = known.names
    order = sorted(unknown, key=lambda value: (-unknown[value], value))
    lines = [
        f"{shown(value)} ({unknown[value]:,} row{'' if unknown[value] == 1 else 's'}){need(value, classes)}"
        for value in order[:SHOWN]
    ]
    more = f" and {len(order) - SHOWN:,} more" if len(order) > SHOWN else ""
    return (
        f"{section}.label: not among the {len(classes):,} classes of {known.origin} ({listed(classes)}): "
        f"{'; '.join(lines)}{more}. Correct the source, {_rename(known)}, or keep such rows without a label by "
        f"{section}.label_missing: [{', '.join(shown(value) for value in order[:SHOWN])}]."
    )


def _rename(known: Named) -> str:
    if known.origin == "snapshot.classes":
        return "add classes to snapshot.classes"
    if known.generic:
        return "list the names of all classes, in the order of the teacher's outputs, in snapshot.classes"
    return "or name the classes alike in the teacher's config (id2label)"


def nobody_named(known: Named) -> str:
    """Word classes that neither a label nor the teacher names."""
    return (
        f"no row has a label, and {known.origin} has only generic names for its {len(known.names):,} classes: list "
        "their names, in the order of the teacher's outputs, in snapshot.classes"
    )


def need(value: str, classes: Sequence[str]) -> str:
    """Return what a value would need to be a class; empty where nothing is near."""
    stripped = value.strip()
    if stripped.isdecimal() and str(int(stripped)) != stripped:
        return f", an index is written {int(stripped)}"
    if stripped.isdecimal():
        padded = [name for name in classes if name.isdecimal() and int(name) == int(stripped)]
        return f", {padded[0]!r} without its leading zeros" if padded else ""
    same = [name for name in classes if name.strip().casefold() == stripped.casefold()]
    if same:
        return f", {same[0]!r} but for case"
    for name in classes:
        difference = same_spelling(value, name)
        if difference:
            return f", which and {name!r} {difference}"
    near = difflib.get_close_matches(value, classes, n=1, cutoff=0.8)
    return f", near {near[0]!r}" if near else ""
