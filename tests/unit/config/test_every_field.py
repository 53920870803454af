"""Every field of a campaign's file: wrong values are refused by its name, or listed here as values it can have."""

import copy
import datetime
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from ray_distill.config import Campaign
from ray_distill.config.reading.document import Document
from ray_distill.config.reading.mistakes import read
from ray_distill.config.reading.shapes import field_of, flat, is_section, names_of

#: A campaign in which every section is given, so that each of its fields can be set.
WHOLE: dict[str, Any] = {
    "campaign": "c",
    "task": "text_classification",
    "snapshot": {
        "source": "a.csv",
        "columns": {},
        "splits": {},
        "augment": {},
        **{split: {"source": "b.csv", "columns": {}} for split in ("validation", "calibration", "test")},
    },
    "sequences": {"filters": {"scorer": "m:f"}, "failures": {}},
    "labels": {
        "teacher": {"model": "m:f", "vllm": {}, "head": {}, "language": {}},
        "signal": {},
        "hidden": {},
        "check": {"limits": {"accuracy": {"min": 0.5}}},
        "resources": {},
        "failures": {},
    },
    "student": {
        "model": {"from": "teacher_width", "width": 0.5, "model": "m:f", "lora": {}, "vocabulary": {"keep": 0.9}},
        "losses": {"soft": {"weight": 1.0}},
        "training": {"budget": {}, "checkpoints": {}, "sampling": {"by": "class"}},
        "mixture": {"how": "average", "others": [{"labels": "l.json"}]},
    },
    "sweep": {"trials": [{"name": "a", "set": {"seed": 2}}], "stop": {"rungs": [1.0]}},
    "evaluation": {"lm_eval": {"folder": "f", "tasks": ["t"]}},
    "gate": {"limits": {"accuracy": {"min": 0.5}}},
    "drift": {},
    "cost": {},
    "plan": {},
    "tracking": {},
}

#: Names of the user's own, below which a section is.
OWN_NAMES = {"limits": "accuracy", "losses": "soft", "others": 0, "trials": 0}

#: Values that few fields can have: set in every field at once.
WRONG: dict[str, Any] = {
    "NaN": math.nan,
    "infinity": math.inf,
    "-infinity": -math.inf,
    "-1": -1,
    "0": 0,
    "1e-300": 1e-300,
    "1e308": 1e308,
    "2**63": 2**63,
    "-2**63-1": -(2**63) - 1,
    "true": True,
    "'yes'": "yes",
    "'1'": "1",
    "''": "",
    "blank": " ",
    "NUL": "a\0b",
    "line break": "a\nb",
    "escape": "a\x1b[31mb",
    "surrogate": "\ud800",
    "long": "x" * 5000,
    "parent": "../../x",
    "separator": "a/b",
    "home": "~/x",
    "memory": "memory://x",
    "[]": [],
    "['']": [""],
    "[NUL]": ["a\0"],
    "[NaN]": [math.nan],
    "section": {"unknown": 1},
    "date": datetime.date(2026, 11, 30),
    "bytes": b"x",
}


def _fields(model: type[BaseModel], *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of each field that is not a section, in the whole campaign."""
    for name in names_of(model):
        field = field_of(model, name)
        assert field is not None
        kinds = flat(field.annotation)
        inner = [one for kind in kinds for member in get_args(kind) for one in flat(member)]
        section = next((kind for kind in (*kinds, *inner) if is_section(kind)), None)
        if section is None or name == "weight":
            yield (*above, name)
        else:
            yield from _fields(section, *above, name, *([OWN_NAMES[name]] if name in OWN_NAMES else []))


FIELDS = [".".join(map(str, path)) for path in _fields(Campaign)]


def _accepted(value: Any) -> set[str]:
    """Return the fields that a value is not refused in."""
    document = copy.deepcopy(WHOLE)
    for path in _fields(Campaign):
        place: Any = document
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = copy.deepcopy(value)
    wrong = read(Document(value=document)).mistakes
    return {field for field in FIELDS if not any(f"{path}.".startswith(f"{field}.") for path in wrong)}


_COLUMNS = {
    f"snapshot.{above}columns.{name}"
    for above in ("", "validation.", "calibration.", "test.")
    for name in ("text", "target", "image", "label", "group", "time")
}
#: Names in a file of the user's own, in a table of a task or an engine, or in MLflow: refused where these are read.
_NAMES = _COLUMNS | {
    *("task", "sweep.trials.0.name"),
    *("labels.teacher.engine", "labels.teacher.device", "labels.signal.encoding", "student.training.compile"),
    "student.model.chosen_by",
}
_PATHS = {
    *("output", "labels.store", "labels.teacher.model", "student.model.model", "student.ceiling"),
    *("student.mixture.others.0.labels", "evaluation.lm_eval.folder", "snapshot.source"),
    *(f"snapshot.{split}.source" for split in ("validation", "calibration", "test")),
}
_PREFIX = {"labels.teacher.language.prefix"}
_NO_LABEL = {field.replace(".text", ".label_missing") for field in _COLUMNS if field.endswith(".text")}
_LISTS = {
    *(
        "evaluation.corruptions",
        "evaluation.prompts",
        "gate.beat",
        "labels.hidden.layers",
        "student.model.lora.targets",
    ),
    *("snapshot.exclude", *_NO_LABEL, *(field.replace("label_missing", "slices") for field in _NO_LABEL)),
}
_BOUNDS = {f"{above}.limits.accuracy.{kind}" for above in ("gate", "labels.check") for kind in ("min", "max")}
_SIGNED = _BOUNDS | {f"sequences.{name}" for name in ("filters.min_log_probability", "filters.min_score")}
#: Names without a placeholder: an experiment of MLflow's, and a digest that the opened model is compared with.
_PLAIN = {"tracking.experiment", "labels.teacher.revision"}
_TEXTS = _NAMES | _PATHS | _PREFIX | _PLAIN

#: Fields in which a value is legitimate: every other field refuses it by name.
VALID: dict[str, set[str]] = {
    "-1": _SIGNED | {"sequences.length_penalty"},
    "0": _SIGNED
    | {"seed", "sequences.length_penalty", "labels.signal.exponent", "evaluation.written", "student.losses.soft.weight"}
    | {f"gate.limits.accuracy.{name}" for name in ("margin", "relative", "teacher_margin")}
    | {f"drift.{name}" for name in ("max_confidence_loss", "max_teacher_loss", "min_classes_js")}
    | {f"{above}.max_bad_fraction" for above in ("snapshot", "sequences", "labels")}
    | {"cost.accelerator_hour", "cost.core_hour", "labels.resources.gpus", "student.model.lora.dropout"}
    | {"student.model.keep"}
    | {
        f"student.training.{name}"
        for name in ("checkpoints.best", "gpus", "gradient_norms_every", "max_failures", "micro_tokens", "packed")
        + ("patience", "warmup", "weight_decay", "zero_stage", "budget.gain", "evaluate_every", "global_batch")
    },
    "true": {
        *("evaluation.overlap", "gate.replace_failing_champion", "labels.check.beat_majority", "tracking.enabled"),
        *("labels.teacher.head.normalize", "labels.teacher.trust_remote_code", "student.model.trust_remote_code"),
        *("sequences.filters.dedup", "sequences.filters.ended", "student.training.activation_checkpointing"),
    },
    "'yes'": _TEXTS | {"campaign", "cost.currency", "gate.alias", "gate.model_name"},
    "'1'": _TEXTS | {"campaign", "cost.currency", "gate.alias", "gate.model_name"},
    "''": _PREFIX,
    "blank": _PREFIX,
    "line break": _PREFIX,
    "escape": _PREFIX,
    "long": _PREFIX,
    "parent": _TEXTS,
    "separator": _TEXTS,
    "home": _NAMES | _PREFIX,
    "memory": _NAMES | _PREFIX | _PLAIN,
    "[]": _LISTS,
    "['']": _NO_LABEL,
    "section": {
        *("labels.teacher.arguments", "student.model.arguments", "student.model.overrides"),
        *("student.training.deepspeed", "snapshot.augment.kinds"),
    },
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_field_refuses_a_wrong_value_by_its_name(kind: str) -> None:
    """A new field fails here until it refuses each value, or the value is listed as one that it can have."""
    assert _accepted(WRONG[kind]) == VALID.get(kind, set())


def test_a_campaign_with_every_section_is_valid() -> None:
    """What is refused above is refused for the value that was put in."""
    assert read(Document(value=WHOLE)).mistakes == {} and len(FIELDS) > 200
