"""Models of label sets: declared sigmoids, students that declare them, fitted heads and what is stored."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import HeadConfig, StudentModel, TeacherConfig, parse_config
from ray_distill.errors import ConfigError, ModelError, TeacherRefused
from ray_distill.labels.model import rowids
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.row_classes import MULTI_LABEL
from ray_distill.models.heads.fit_head import fit_head
from ray_distill.models.io.load import load_model, load_processor
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.runtime.forecast.storage_options import Comparison, compare
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.facets import ModelFacet
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import TransformersTeacher, open_teacher
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_image_model, write_tiny_text_model

TEXT, IMAGE = "text_multi_label", "image_multi_label"
LABELS = ("sport", "money", "weather")
FAMILY: ModelFacet = get_task(TEXT).answers.model


def _declared(folder: Path, problem: str | None = MULTI_LABEL) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherConfig:
    folder = write_tiny_text_model(tmp_path_factory.mktemp("models") / "teacher", LABELS, seed=0)
    return TeacherConfig(model=_declared(folder))


def _rows(texts: list[str]) -> pa.Table:
    return pa.table({"row_id": pa.array([row_id(n) for n in range(len(texts))], rowids.ROW_ID), "text": texts})


def test_a_checkpoint_is_accepted_only_where_it_declares_sigmoids(tmp_path: Path) -> None:
    """Without a problem type, or with another one, the message names the other task and the field to set."""
    for inputs, task, write in (("text", TEXT, write_tiny_text_model), ("image", IMAGE, write_tiny_image_model)):
        folder = write(tmp_path / inputs, LABELS, seed=0)
        with pytest.raises(ModelError, match=f"has no problem_type .*use the task {inputs}_classification"):
            load_model(_declared(folder, None), task=task)
        with pytest.raises(ModelError, match="problem_type single_label_classification .*set problem_type to multi"):
            load_model(_declared(folder, "single_label_classification"), task=task)
        assert load_model(_declared(folder), task=task).classes == LABELS


def test_one_label_is_enough(tmp_path: Path) -> None:
    """A yes or no for a single label is what one logit means."""
    folder = write_tiny_text_model(tmp_path / "one", ("spam",), seed=0)
    assert load_model(_declared(folder), task=TEXT).class_count == 1


def test_a_teacher_stores_the_log_odds_of_every_label(teacher: TeacherConfig) -> None:
    """They are the module's own logits, one position a row, at any temperature that is declared."""
    opened = open_teacher(teacher, task=TEXT)
    assert isinstance(opened, TransformersTeacher)
    encoded = get_task(TEXT).inputs.encode(_rows(["abc", "de f"]), opened.model.processor)
    found = opened.answer(encoded, LabelRequest(estimator="dense", k=0, temperatures=(1.0, 4.0))).distributions
    with torch.inference_mode():
        batch = get_task(TEXT).inputs.collate(encoded, np.arange(2))
        logits = opened.model.module(**batch).logits
    assert found.family == "bernoulli" and found.position.tolist() == [0, 0] and found.log_odds is not None
    np.testing.assert_allclose(found.log_odds.reshape(2, 3), logits.numpy(), atol=1e-6)
    assert opened.answer(encoded.take(np.zeros(0, np.int64)), LabelRequest(estimator="dense", k=0, temperatures=(1.0,)))
    with pytest.raises(TeacherRefused, match="use dense"):
        opened.answer(encoded, LabelRequest(estimator="topk", k=1, temperatures=(1.0,)))


@pytest.mark.parametrize(
    "source",
    [
        {"from": "config", "overrides": {"hidden_size": 16, "intermediate_size": 16}},
        {"from": "teacher_layers", "keep": 1},
        {"from": "checkpoint"},
    ],
)
def test_a_student_declares_sigmoids_and_loads_again(
    teacher: TeacherConfig, tmp_path: Path, source: dict[str, object]
) -> None:
    """From each source, a checkpoint that declares nothing too; its labels are in the requested order."""
    if source["from"] == "checkpoint":
        source = source | {"model": str(write_tiny_text_model(tmp_path / "plain", ("x", "y"), seed=1))}
    order = LABELS[::-1]
    student = build_student(StudentModel.model_validate(source), task=TEXT, classes=order, teacher=teacher, seed=3)
    assert student.classes == order and student.module.config.problem_type == MULTI_LABEL
    save_model(student, tmp_path / "saved", card="", metadata={})
    again = load_model(str(tmp_path / "saved"), task=TEXT)
    assert again.classes == order
    with pytest.raises(ModelError, match="use the task text_multi_label"):
        load_model(str(tmp_path / "saved"), task="text_classification")


def test_copied_layers_keep_the_teachers_head_in_the_requested_order(teacher: TeacherConfig) -> None:
    """The row of each label follows its name."""
    model = StudentModel.model_validate({"from": "teacher_layers", "keep": 2})
    student = build_student(model, task=TEXT, classes=LABELS[::-1], teacher=teacher, seed=0)
    original = load_model(teacher, task=TEXT)
    assert torch.equal(student.module.classifier.weight, original.module.classifier.weight.flip(0))


def test_settings_of_language_models_are_refused(teacher: TeacherConfig) -> None:
    """Token embeddings of a teacher, and adapters."""
    for settings, match in (
        ({"from": "config", "embeddings": "copy"}, "embeddings"),
        ({"from": "teacher_layers", "keep": 1, "lora": {}}, "lora"),
    ):
        with pytest.raises(ConfigError, match=f"student.model.{match}.*is for language models"):
            build_student(StudentModel.model_validate(settings), task=TEXT, classes=LABELS, teacher=teacher, seed=0)


def test_a_fitted_head_has_a_regression_a_label(tmp_path: Path) -> None:
    """An encoder's head is fitted on sets; a label that no row has, or that is beyond every set, is refused."""
    write_tiny_text_model(tmp_path / "encoder", ("a", "b"), seed=0)
    spec = TeacherConfig(model=str(tmp_path / "encoder"), head=HeadConfig())
    texts = [f"{'sport' * (n % 2)} {'money' * (n % 3)} {n}" for n in range(24)]
    truth = np.array([[n % 2, n % 3 > 0] for n in range(24)], np.int8)
    encoded = get_task(TEXT).inputs.encode(_rows(texts), load_processor(spec, task=TEXT))

    def fit(classes: tuple[str, ...]) -> str:
        return fit_head(
            spec,
            encoded,
            truth,
            classes=classes,
            prepare=FAMILY.head_fit,
            collate=get_task(TEXT).inputs.collate,
            seed=0,
            url=str(tmp_path / "heads"),
        )

    model = load_model(spec, task=TEXT, head_url=fit(LABELS[:2]))
    with torch.inference_mode():
        odds = model.module(**get_task(TEXT).inputs.collate(encoded, np.arange(24))).logits.numpy()
    assert odds.shape == (24, 2) and ((odds > 0) == truth).mean() > 0.8
    with pytest.raises(ModelError, match=r"'weather' \(0 of 24\)"):
        fit(LABELS)


def test_a_plan_has_the_configured_form_alone(teacher: TeacherConfig) -> None:
    """Sigmoids are stored dense, as they are: nothing is lost, and there is no other form to choose from."""
    config = parse_config(
        {
            "campaign": "c",
            "task": TEXT,
            "snapshot": {"source": "x"},
            "labels": {"teacher": {"model": teacher.model}, "signal": {"temperatures": [1, 4]}},
        }
    )
    opened = open_teacher(teacher, task=TEXT)
    assert isinstance(opened, TransformersTeacher)
    facts = TeacherFacts(
        fingerprint="f", space=AnswerSpace(size=len(LABELS), names=LABELS), layers=(), head_url=None, describe={}
    )
    encoded = get_task(TEXT).inputs.encode(_rows([f"row {n}" for n in range(20)]), opened.model.processor)
    comparison = Comparison(config=config, facts=facts, teacher=opened, units=[20], kept=1.0, positions=1.0)
    found = compare(comparison, encoded)
    (option,) = found.options
    assert (option.estimator, option.nats, option.draws) == ("dense", 0.0, 0) and option.total_bytes > 0
    assert found.curve == () and found.smallest_k is None and found.full
    assert make_manifest(config, facts).distributions.family == "bernoulli"


def test_labels_are_described_and_limited_as_named_classes_are() -> None:
    """The facet of models over named classes, with another meaning of the logits."""
    space = FAMILY.space_of(torch.nn.Identity(), LABELS, "m:f")
    assert FAMILY.FAMILY == "bernoulli" and FAMILY.describe(space) == "with 3 classes"
    assert FAMILY.logits_shape(3) == (1, 3) and FAMILY.limit_entries(9, space, "m") == 3
    assert FAMILY.separate(torch.nn.Identity()) is None
    with pytest.raises(TeacherRefused, match="only the teacher has"):
        FAMILY.check_classes(space, LABELS[:2], "m")
