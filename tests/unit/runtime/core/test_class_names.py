"""Names of classes: the campaign's, else the teacher's, else the labels'; asked for only where nobody has them."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from ray_distill.config import Campaign, parse_config
from ray_distill.errors import SnapshotError
from ray_distill.runtime.campaign import snapshot_key
from ray_distill.runtime.core.class_names import describe_classes, unnamed_classes, with_teacher_names
from ray_distill.runtime.stages.snapshot import freeze, open_for
from ray_distill.snapshots import SPLITS, Snapshot

NAMED = ("sport", "food", "politics")
GENERIC = ("LABEL_0", "LABEL_1", "LABEL_2")


def config_of(folder: Path, names: tuple[str, ...] | None, labels: list[Any], **snapshot: Any) -> Campaign:
    """Return a campaign on rows with the labels in turn; its teacher has a config alone, with these names."""
    if names is not None:
        transformers.BertConfig(id2label=dict(enumerate(names))).save_pretrained(folder / "teacher")
    rows = [{"text": f"row {at}", "label": labels[at % len(labels)]} for at in range(300)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"columns": {"label": "label"}} if any(label is not None for label in labels) else {}
    return parse_config(
        {
            "campaign": "names",
            "task": "text_classification",
            "output": str(folder / "out"),
            "snapshot": {"source": str(folder / "rows.jsonl"), **columns, **snapshot},
            "labels": {"teacher": {"model": str(folder / "teacher")}},
        }
    )


def frozen(config: Campaign) -> Snapshot:
    return open_for(config.task, freeze(config))


def found(snapshot: Snapshot) -> set[str | None]:
    labels = [label for split in SPLITS for label in snapshot.read(split)["label"].to_pylist()]
    return {None if label is None else snapshot.classes[label] for label in labels}


@pytest.mark.parametrize(
    ("labels", "names"), [([None], {None}), (["food", None], {"food", None}), ([0, 2, -1], {"sport", "politics", None})]
)
def test_classes_are_the_teachers_in_its_order(tmp_path: Path, labels: list[Any], names: set[str | None]) -> None:
    """Without labels, with labels of some classes, and with indices into the teacher's outputs."""
    snapshot = frozen(config_of(tmp_path, NAMED, labels))
    assert snapshot.classes == NAMED and found(snapshot) == names


def test_a_function_names_the_classes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is built where teachers run; the names do not stand in a file."""

    def here(function: Any, *arguments: Any, **options: Any) -> Any:
        assert options["rows"] == 0
        return function(*arguments)

    monkeypatch.setattr("ray_distill.runtime.stages.snapshot.run_teacher_task", here)
    config = config_of(tmp_path, None, [None])
    teacher = config.labels.teacher.model_copy(update={"model": "tests.labs.campaign:spelling_teacher"})
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"teacher": teacher})})
    assert frozen(config).classes == ("fruit", "metal", "river")


def test_a_label_that_the_teacher_does_not_have_is_named(tmp_path: Path) -> None:
    """More than five names that differ are counted."""
    with pytest.raises(SnapshotError, match=r"'sports' \(100 rows\), near 'sport'.*name the classes alike in the teac"):
        frozen(config_of(tmp_path, NAMED, ["sports", "food", "politics"]))


def test_listed_classes_come_before_the_teachers(tmp_path: Path) -> None:
    """Their order is kept, and only other names are refused, when the teacher is opened."""
    assert frozen(config_of(tmp_path, NAMED, ["food"], classes=NAMED[::-1])).classes == NAMED[::-1]


@pytest.mark.parametrize(("labels", "classes"), [([0, 2], ("0", "1", "2")), (["a", "b"], ("a", "b"))])
def test_generic_names_are_nobodys(tmp_path: Path, labels: list[Any], classes: tuple[str, ...]) -> None:
    """Numbers among the labels are the numbers of the outputs; words name the classes themselves."""
    assert frozen(config_of(tmp_path, GENERIC, labels)).classes == classes


def test_names_are_asked_for_where_nobody_has_them(tmp_path: Path) -> None:
    """At the start if no column of labels is named, else once no row has a label."""
    config = config_of(tmp_path, GENERIC, [None])
    assert "snapshot.classes: no column of labels is named" in unnamed_classes(config)[0]
    with pytest.raises(SnapshotError, match=r"no row has a label, and the teacher .* has only generic names for its 3"):
        frozen(config_of(tmp_path, GENERIC, [None], columns={"label": "label"}))
    for other in (config_of(tmp_path, GENERIC, [None], classes=NAMED), config_of(tmp_path, NAMED, [None])):
        assert unnamed_classes(other) == []


def test_generic_outputs_get_the_names_of_the_campaign(tmp_path: Path) -> None:
    """Where the sizes agree; a teacher with names keeps them."""
    named = with_teacher_names(config_of(tmp_path, GENERIC, [None], classes=NAMED))
    assert named.labels.teacher.classes == NAMED and with_teacher_names(named) == named
    assert with_teacher_names(config_of(tmp_path, GENERIC, [0])).labels.teacher.classes == ("0", "1", "2")
    for names, classes in ((GENERIC, NAMED[:2]), (NAMED, NAMED)):
        assert with_teacher_names(config_of(tmp_path, names, [None], classes=classes)).labels.teacher.classes is None


def test_the_teachers_names_decide_the_snapshot(tmp_path: Path) -> None:
    """Another order of the teacher's is another snapshot; a teacher that is not there yet has none."""
    keys = {snapshot_key(config_of(tmp_path, names, ["food"])) for names in (None, NAMED, NAMED[::-1])}
    assert len(keys) == 3
    assert frozen(config_of(tmp_path / "teacher", None, ["food", "sport"])).classes == ("food", "sport")


def test_a_plan_states_the_classes_and_who_names_them(tmp_path: Path) -> None:
    """A phrase with at most five names."""
    named = describe_classes(config_of(tmp_path, NAMED, [None]))
    assert named == "; classes 3: sport, food, politics (the teacher's)"
    listed = describe_classes(config_of(tmp_path, NAMED, [None], classes=tuple("abcdef")))
    assert listed == "; classes 6: a, b, c, d, e, … (snapshot.classes)"
    assert "no names for them" in describe_classes(config_of(tmp_path, GENERIC, [0]))
