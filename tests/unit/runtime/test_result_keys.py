"""Every key by which results are reused follows every option of the sections that its stage reads."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import pytest
from pydantic import BaseModel, create_model

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, HeadConfig, parse_config
from ray_distill.config.identity import decides, identity
from ray_distill.fingerprint import canonical_json
from ray_distill.runtime import campaign, dry_run
from ray_distill.runtime.core.session import parent_key
from ray_distill.runtime.stages import evaluate, generate, label
from ray_distill.runtime.sweep import resolve_trials
from ray_distill.students.arms import arm_by_name
from ray_distill.students.job import TrainingJob, arm_plan

SNAPSHOT = SnapshotRef(url="u", fingerprint="s")
LABELS = LabelSetRef(store="s", fingerprint="l", snapshot=SNAPSHOT, log_length=1, log_digest="d")
STUDENT = StudentRef(url="u", fingerprint="t", arm="student", labels=LABELS)
#: A path to a value: names of fields, keys of mappings, numbers of items.
Path = tuple[str | int, ...]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign in which every optional section is present, except the head, which a language model has not."""
    source = tmp_path_factory.mktemp("source") / "rows.jsonl"
    source.write_text('{"text": "x"}\n')
    return parse_config(
        {
            "campaign": "c",
            "task": "causal_lm",
            "snapshot": {"source": str(source)},
            "sequences": {},
            "labels": {"teacher": {"model": "module:function"}},
            "student": {
                "model": {"from": "checkpoint", "model": "m", "lora": {}},
                "training": {"sampling": {"by": "class"}},
                "mixture": {"how": "source", "others": [{"labels": "other"}]},
            },
            "evaluation": {"lm_eval": {"folder": "f", "tasks": ["t"]}},
            "gate": {"limits": {"nll": {"max": 1}}},
            "sweep": {"trials": [{"name": "t", "set": {"seed": 1}}], "stop": {"rungs": [1]}},
        }
    )


def _job(config: Campaign) -> TrainingJob:
    return TrainingJob(config=config, labels=LABELS, output="", seed=config.seed, others=(LABELS,))


#: Training options that divide the work among passes, processes and memory, or say what is kept and reported.
WORK = (
    *("micro_batch", "micro_tokens", "packed", "engine", "workers", "gpus", "cpus", "zero_stage", "offload"),
    *("stream", "memory_gb", "compile", "activation_checkpointing", "checkpoint_every", "max_failures"),
    *("gradient_norms_every", "checkpoints.last", "checkpoints.best"),
)


#: Every key, with the sections whose options it must follow.
KEYS: dict[str, tuple[Callable[[Campaign], object], tuple[Path, ...]]] = {
    "parent": (parent_key, ((), ("snapshot",), ("sequences",), ("labels",), ("student",), ("evaluation",), ("gate",))),
    "sweep": (lambda config: parent_key(config, sweep=True), (("sweep",), ("student",), ("labels",))),
    "snapshot": (campaign.snapshot_key, (("snapshot",),)),
    "write": (
        lambda config: generate.key_of(config, SNAPSHOT),
        (("sequences",), ("labels", "teacher"), ("labels", "resources"), ("snapshot",)),
    ),
    "label": (lambda config: label.key_of(config, SNAPSHOT), (("labels",),)),
    "labels of a sweep": (resolve_trials.label_key, (("labels",),)),
    "train": (
        lambda config: arm_plan(_job(config), arm_by_name("student")),
        (("student", "model"), ("student", "training"), ("student", "mixture"), ("student", "losses", "soft")),
    ),
    "evaluate": (
        lambda config: evaluate.key_of(config, {"student": STUDENT}),
        (("evaluation",), ("labels", "teacher"), ("labels", "resources"), ("snapshot", "columns")),
    ),
}


def _at(value: Any, path: Path) -> Any:
    return reduce(
        lambda found, part: (
            getattr(found, part) if isinstance(part, str) and isinstance(found, BaseModel) else found[part]
        ),
        path,
        value,
    )


def _put(value: Any, path: Path, item: Any) -> Any:
    """Return a copy in which the value at a path is another one; nothing is validated."""
    if not path:
        return item
    first, *rest = path
    changed = _put(_at(value, (first,)), tuple(rest), item)
    if isinstance(value, BaseModel):
        return value.model_copy(update={str(first): changed})
    if isinstance(value, dict):
        return {**value, first: changed}
    return tuple(changed if at == first else other for at, other in enumerate(value))


def _fields(value: Any, path: Path = (), deciding: bool = True) -> Iterator[tuple[Path, bool]]:
    """Yield the path of every field that is no section itself, and whether it decides with all that it lies in."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from _fields(getattr(value, name), (*path, name), deciding and decides(field))
    elif isinstance(value, dict) and any(isinstance(item, BaseModel) for item in value.values()):
        for name, item in value.items():
            yield from _fields(item, (*path, name), deciding)
    elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        for at, item in enumerate(value):
            yield from _fields(item, (*path, at), deciding)
    else:
        yield path, deciding


def _with_option(section: BaseModel, value: str) -> BaseModel:
    """Return a section of a later release, which has one more option."""
    later = create_model("Later", __base__=type(section), later_option=(str, "as before"))
    return later.model_construct(
        **{name: getattr(section, name) for name in type(section).model_fields}, later_option=value
    )


def test_a_result_made_with_another_value_of_a_new_option_is_not_reused(config: Campaign) -> None:
    """A key follows an option that it was not written for, in every section that its stage reads."""
    for name, (key, sections) in KEYS.items():
        for path in sections:
            one, other = (_put(config, path, _with_option(_at(config, path), value)) for value in ("a", "b"))
            assert key(one) != key(other), (name, path)


def test_every_field_decides_or_says_that_it_does_not(config: Campaign) -> None:
    """Another value changes a campaign's identity exactly if the field, and all that it lies in, decide."""
    config = _put(config, ("labels", "teacher", "head"), HeadConfig())
    fields = dict(_fields(config))
    assert len(fields) > 150
    for path, deciding in fields.items():
        changed = identity(_put(config, path, "another value")) != identity(config)
        assert changed == deciding, path


def test_the_places_and_resources_of_a_campaign_do_not_decide(config: Campaign) -> None:
    """The whole list: a field that joins it is a decision to be reviewed."""
    found = {".".join(str(part) for part in path) for path, deciding in _fields(config) if not deciding}
    sections = {"sweep", "drift", "cost", "plan", "tracking", "labels.check", "labels.failures", "sequences.failures"}
    assert {path for path in found if not any(path.startswith(f"{name}.") for name in sections)} == {
        "output",
        "snapshot.max_bad_fraction",
        "sequences.unit_rows",
        "sequences.max_bad_fraction",
        "labels.store",
        "labels.max_bad_fraction",
        "student.model.chosen_by",
        "labels.teacher.vllm.python",
        "labels.teacher.vllm.gpu_memory_utilization",
        "labels.resources.actors",
        "labels.resources.gpus",
        "gate.alias",
        "gate.model_name",
        *(f"student.training.{name}" for name in WORK),
    }


def test_another_value_of_a_field_makes_an_arm_anew_exactly_if_it_decides(config: Campaign) -> None:
    """Fields of a training that divide the work leave a finished arm what it is; all others are part of its plan."""
    key = KEYS["train"][0]
    for path, deciding in _fields(config.student.training, ("student", "training")):
        assert (key(_put(config, path, "another value")) != key(config)) == deciding, path


def test_an_option_at_its_default_is_the_option_left_out(config: Campaign) -> None:
    """Campaigns that mean the same have one identity; a section left out differs from one at its defaults."""
    written = config.model_dump(mode="json", by_alias=True)
    assert canonical_json(identity(parse_config(written))) == canonical_json(identity(config))
    assert identity(_put(config, ("sequences",), None)) != identity(config)


def test_labels_count_by_their_content_wherever_they_lie(config: Campaign) -> None:
    """Label sets of a mixture that have moved train no student anew; others in their place do."""
    key, moved = KEYS["train"][0], _put(config, ("student", "mixture", "others", 0, "labels"), "elsewhere")
    assert key(moved) == key(config)
    others = (LabelSetRef(store="s", fingerprint="other", snapshot=SNAPSHOT, log_length=1, log_digest="d"),)
    job = TrainingJob(config=config, labels=LABELS, output="", seed=config.seed, others=others)
    assert arm_plan(job, arm_by_name("student")) != key(config)


def test_labels_of_another_store_are_another_result_of_the_stage(config: Campaign) -> None:
    """The result names its store; the labels of a sweep are the same wherever they lie."""
    moved = _put(config, ("labels", "store"), "elsewhere")
    assert label.key_of(moved, SNAPSHOT) != label.key_of(config, SNAPSHOT)
    assert resolve_trials.label_key(moved) == resolve_trials.label_key(config)


def test_files_to_leave_out_are_not_counted_as_sources() -> None:
    """The plan counts what is read for rows, and names what takes rows away beside it."""
    roles = [{"role": role} for role in ("source", "source", "exclude", "test")]
    assert dry_run._counted(roles) == "2 source file(s) less the rows of 1 file(s)"
    assert dry_run._counted(roles[:2]) == "2 source file(s)"


@pytest.mark.parametrize("changed", ["gate", "tracking", "drift", "cost", "plan"])
def test_what_is_decided_and_recorded_retrains_nothing(config: Campaign, changed: str) -> None:
    """Other limits, alias, prices or points of curves: the same snapshot, labels, students and report."""
    sections = {
        "gate": {"limits": {"nll": {"max": 2}}, "alias": "other"},
        "tracking": {"every": 7, "experiment": "other"},
        "drift": {},
        "cost": {"core_hour": 9},
        "plan": {"rows": 9},
    }
    section = type(getattr(config, changed)).model_validate(sections[changed])
    other = config.model_copy(update={changed: section})
    for name in ("snapshot", "write", "label", "train", "evaluate"):
        key, _ = KEYS[name]
        assert key(other) == key(config), name
