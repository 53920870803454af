"""Models over named classes: whose names, how many differ, and generic names that are nobody's."""

from types import SimpleNamespace

import pytest

from ray_distill.config import TeacherConfig
from ray_distill.errors import ConfigError, ModelError, TeacherRefused
from ray_distill.models.core.row_classes import check_classes, check_id2label, class_names, named
from ray_distill.models.io.load import renamed


def test_few_names_that_differ_are_listed_and_many_are_counted() -> None:
    """The message stays one line with 389 classes."""
    with pytest.raises(TeacherRefused, match=r"only the teacher has \['b'\], only the snapshot has \['c'\]"):
        check_classes(named(("a", "b")), ("a", "c"), "m")
    many = tuple(f"class {at:03}" for at in range(389))
    with pytest.raises(
        TeacherRefused, match=r"only the teacher has 389 classes such as \['class 000', .*'class 004'\]"
    ):
        check_classes(named(many), ("a",), "m")


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("0", "1")])
def test_generic_names_are_asked_for(names: tuple[str, ...]) -> None:
    """They are no class of the snapshot, and the order is not a guess."""
    with pytest.raises(TeacherRefused, match="only generic names for its 2 classes .*: list 2 names, in the order"):
        check_classes(named(names), ("ham", "spam"), "m")


def test_outputs_get_the_names_of_the_configuration() -> None:
    """One name an output."""
    config = TeacherConfig(model="m", classes=("ham", "spam"))
    assert renamed(named(("LABEL_0", "LABEL_1")), config).names == ("ham", "spam")
    with pytest.raises(ConfigError, match=r"labels\.teacher\.classes has 2 names \(ham, spam\), and m answers with 3"):
        renamed(named(("a", "b", "c")), config)


@pytest.mark.parametrize(
    ("names", "indices", "fault"),
    [
        ({1: "ham", 2: "spam"}, None, r"numbers 2 outputs \['1', '2'\], expected 0, 1, 2"),
        ({0: "ham", 2: "spam"}, None, r"numbers 2 outputs \['0', '2'\]"),
        ({0: "ham", 1: " "}, None, "has no name for output 1"),
        ({0: "crane", 1: "ham", 2: "crane"}, {"crane": 2, "ham": 1}, "gives the outputs 0 and 2 one name, 'crane'"),
        ({0: "ham", 1: "spam"}, {"ham": 1, "spam": 0}, "names output 0 'ham', and label2id gives that"),
    ],
)
def test_outputs_without_one_name_each_are_refused(names: dict[int, str], indices: object, fault: str) -> None:
    """Unless the campaign names them; a label2id of other names decides nothing."""
    found = SimpleNamespace(id2label=names, label2id=indices)
    with pytest.raises(ModelError, match=f"m: id2label in its config.json {fault}.*labels.teacher.classes"):
        check_id2label(TeacherConfig(model="m"), found)
    check_id2label(TeacherConfig(model="m", classes=("a", "b")), found)
    check_id2label(
        TeacherConfig(model="m"), SimpleNamespace(id2label={0: "ham", 1: "spam"}, label2id={"LABEL_0": 0, "spam": 1})
    )
    assert len(set(class_names(found))) == len(names)
