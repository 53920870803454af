"""Read the labels of one column: all as names, or all as indices; and what means no label.

A pure function of the distinct values and their counts, so that formats, files and the order of rows change nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config.snapshot import Columns
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.label_reading import messages
from ray_distill.snapshots.label_reading.spelling import (
    BLANKS,
    DOUBTFUL,
    is_fraction,
    is_integer,
    is_rounded,
    key,
    respell,
    same_spelling,
    truth_word,
)
from ray_distill.snapshots.rows import Mask

Kind = Literal["names", "indices"]

#: Integers that stand for "no label" beside 0, 1, 2…: GLUE's hidden labels, and the index that losses ignore.
_ABSENT = frozenset(("-1", "-100"))
#: Beyond so many different fractions a column has numbers to predict, not classes.
_MOST_FRACTIONS = 50


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Class names in order, and the place that they were read from."""

    names: tuple[str, ...]
    origin: str = "snapshot.classes"
    generic: bool = False
    """Whether they only number a teacher's outputs from 0: then labels that are words name the classes themselves."""


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """How the labels of one source may be read."""

    known: ClassNames | None
    """None: the labels themselves name the classes."""
    columns: Columns
    section: str
    """Place of ``columns`` in the configuration, for messages."""
    tolerance: float
    """Share of labels that may contradict a reading."""

    @property
    def field(self) -> str:
        """Return the field that names the column of labels."""
        return f"{self.section}.label"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Meaning of each distinct value of a label column."""

    kind: Kind = "names"
    names: Mapping[str, str]
    """Class name by value as written; values without one are in ``unlabelled`` or ``unknown``."""
    unlabelled: Mapping[str, int]
    """Rows by value that means no label; empty texts are not among them."""
    unknown: Mapping[str, int]
    """Rows by value that is not a class."""
    rows: Mapping[str, int]
    """Rows by value."""

    @property
    def respelt(self) -> dict[str, str]:
        """Return the class of each value that differs from it in spelling alone."""
        if self.kind == "indices":
            return {}
        return {value: name for value, name in self.names.items() if value != name}

    @property
    def found(self) -> tuple[str, ...]:
        """Return the names of the classes that have rows, sorted: numerically if all are integers."""
        return sort_names(self.names.values())


NOTHING = Reading(names={}, unlabelled={}, unknown={}, rows={})


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct names, sorted: numerically if all are integers."""
    distinct = set(names)
    return tuple(sorted(distinct, key=int) if all(is_integer(name) for name in distinct) else sorted(distinct))


def read_labels(rows: Mapping[str, int], rules: LabelRules) -> Reading:
    """Decide how all labels of a column are read.

    Args:
        rows: rows by distinct value.
        rules: known classes, and the settings that decide where the values alone do not.

    Raises:
        SnapshotError: the column has two readings; the message has both, and the field that decides.
    """
    if rules.known is not None and rules.known.generic and not _number(rows):
        rules = replace(rules, known=None)
    known = frozenset(() if rules.known is None else rules.known.names)
    as_written = rules.columns.label_values == "names"
    spelt = {value: value if as_written or value in known else text for value, text in respell(rows).items()}
    maybe = {value: text for value, text in spelt.items() if text not in known}
    unlabelled = {value for value, text in maybe.items() if _is_unlabelled(value, text, spelt, rules)}
    values = {value: text for value, text in spelt.items() if value not in unlabelled}
    _refuse_numbers(values, rules)
    if rules.known is None:
        kind, names = _name_themselves(values, rules)
    else:
        kind, names = _among(values, rows, rules)
    return Reading(
        kind=kind,
        names=names,
        unlabelled={value: rows[value] for value in sorted(unlabelled) if value.strip()},
        unknown={value: rows[value] for value in sorted(values) if value not in names},
        rows=rows,
    )


def _number(rows: Iterable[str]) -> bool:
    """Return whether all values that are not a marker are integers."""
    texts = [text for text in respell(rows).values() if text.casefold() not in BLANKS | DOUBTFUL]
    return all(is_integer(text) for text in texts)


def without_markers(reading: Reading) -> Reading:
    """Count markers as values that are not a class, as entries of sets are never missing."""
    return replace(reading, unlabelled={}, unknown={**reading.unknown, **reading.unlabelled})


def _is_unlabelled(value: str, text: str, spelt: Mapping[str, str], rules: LabelRules) -> bool:
    marker, given = text.strip().casefold(), rules.columns.label_missing
    if not marker:
        return True
    if given is not None:
        return value in given or text in given
    if marker in BLANKS or (marker in DOUBTFUL and rules.known is not None):
        return True
    if marker in DOUBTFUL:
        raise SnapshotError(messages.doubtful_marker(value, rules.section))
    return text in _ABSENT and _are_counts(spelt.values(), rules)


def _are_counts(values: Collection[str], rules: LabelRules) -> bool:
    """Return whether the other values count from 0, so that a negative one stands for no label.

    Raises:
        SnapshotError: the only other value is 1, as where −1 and 1 are two classes.
    """
    others = {text for text in values if text not in _ABSENT and text.casefold() not in BLANKS | DOUBTFUL}
    if not all(is_integer(text) and not text.startswith("-") for text in others):
        return False
    if others == {"1"}:
        raise SnapshotError(messages.minus_and_plus(rules.section))
    return True


def _refuse_numbers(values: Mapping[str, str], rules: LabelRules) -> None:
    texts = set(values.values()) - set(() if rules.known is None else rules.known.names)
    rounded = sorted(filter(is_rounded, texts))
    if rounded:
        raise SnapshotError(messages.rounded_number(rounded[0], rules.field))
    fractions = sorted(filter(is_fraction, texts))
    if len(fractions) > _MOST_FRACTIONS:
        raise SnapshotError(messages.fractions(fractions, rules.field))


def _name_themselves(values: Mapping[str, str], rules: LabelRules) -> tuple[Kind, dict[str, str]]:
    if rules.columns.label_values == "indices":
        raise SnapshotError(messages.indices_of_nothing(rules.section))
    texts = sorted(set(values.values()))
    _refuse_one_class_twice(texts, rules)
    _refuse_two_kinds(texts, rules)
    return "names", dict(values)


def _refuse_one_class_twice(texts: Sequence[str], rules: LabelRules) -> None:
    truths = {text: truth_word(text) for text in texts}
    seen: dict[str, str] = {}
    for text in texts:
        word = truths[text] if all(truths.values()) else None
        other = seen.setdefault(word or key(text), text)
        if other != text:
            difference = same_spelling(other, text) or f"both mean {word}"
            raise SnapshotError(messages.alike(other, text, difference, field=rules.field))


def _refuse_two_kinds(texts: Sequence[str], rules: LabelRules) -> None:
    """Refuse as many words as integers from 0: one file may have names, another their indices."""
    numbers = sort_names(filter(is_integer, texts))
    words = [text for text in texts if text not in numbers]
    if len(words) == len(numbers) > 1 and numbers == tuple(map(str, range(len(words)))):
        raise SnapshotError(messages.two_kinds(numbers, words, rules.field))


def _among(values: Mapping[str, str], rows: Mapping[str, int], rules: LabelRules) -> tuple[Kind, dict[str, str]]:
    """Return the reading among known classes; see `read_labels`."""
    assert rules.known is not None, "the classes are known"
    by_name = _by_name(values, rules.known.names)
    by_index = _by_index(values, rules.known.names)
    setting = rules.columns.label_values
    kind: Kind = setting if setting != "auto" else _decide(by_name, by_index, rows, rules)
    if kind == "indices":
        _refuse_counting_from_one(values, by_index, rules)
        return kind, by_index
    return kind, by_name


def _by_name(values: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    spelt = respell(names)
    times = Counter(spelt.values())
    lookup = {text: name for name, text in spelt.items() if times[text] == 1} | {name: name for name in names}
    return {value: lookup[text] for value, text in values.items() if text in lookup}


def _by_index(values: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {
        value: names[int(text)]
        for value, text in values.items()
        if is_integer(text) and len(text) < 10 and 0 <= int(text) < len(names)
    }


def _decide(
    by_name: Mapping[str, str], by_index: Mapping[str, str], rows: Mapping[str, int], rules: LabelRules
) -> Kind:
    """Return the reading of a column whose values may be names, indices or both.

    Raises:
        SnapshotError: some values are indices alone, others are indices and the name of another class.
    """
    only_name, only_index = by_name.keys() - by_index.keys(), by_index.keys() - by_name.keys()
    both = {value for value in by_name.keys() & by_index.keys() if by_name[value] != by_index[value]}
    if not only_index:
        return "names"
    if both:
        strays, total = _count(only_index, rows), _count(by_name.keys() | by_index.keys(), rows)
        if only_name and strays <= rules.tolerance * total:
            return "names"
        raise SnapshotError(messages.two_readings(by_name, by_index, rows, rules.section))
    return "names" if _count(by_name, rows) >= _count(by_index, rows) else "indices"


def _refuse_counting_from_one(values: Mapping[str, str], by_index: Mapping[str, str], rules: LabelRules) -> None:
    assert rules.known is not None, "only known classes have indices"
    classes, texts = len(rules.known.names), set(values.values())
    if str(classes) in texts and "0" not in texts and len(by_index) > 0:
        raise SnapshotError(messages.counts_from_one(classes, rules.known.names[0], rules.section))


def _count(values: Iterable[str], rows: Mapping[str, int]) -> int:
    return sum(rows[value] for value in values)


def count_values(labels: pa.Array) -> dict[str, int]:
    """Return rows by distinct text; null is not a value."""
    counts = pc.value_counts(labels.drop_null())
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def to_names(labels: pa.Array, reading: Reading) -> pa.Array:
    """Return the class name of each text, large_string; null where it has none."""
    encoded = labels.dictionary_encode()
    names = pa.array([reading.names.get(value) for value in encoded.dictionary.to_pylist()], pa.large_string())
    return names.take(encoded.indices)


def is_unknown(labels: pa.Array, reading: Reading) -> Mask:
    """Return ``[N]``: whether a text is not a class, and does not mean unlabelled either."""
    unknown = pa.array(sorted(reading.unknown), pa.large_string())
    result: Mask = pc.is_in(labels, value_set=unknown).to_numpy(zero_copy_only=False)
    return result
