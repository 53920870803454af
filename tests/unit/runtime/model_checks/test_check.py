"""What a check of models finds beyond one mistake: notes, stores, functions, large models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError, ModelError, StoreMismatch, TeacherRefused
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import signal_of
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.writer import write_attempt
from ray_distill.runtime.labelling.calibrate_store import fit_store, with_found
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.model_checks import sizes
from ray_distill.runtime.model_checks.check import check_models
from ray_distill.runtime.model_checks.student import open_student
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_image_model, write_tiny_text_model
from ray_distill.testing.tasks.store import OneShard
from tests.labs.training import table_of

CLASSES = ("a", "b", "c", "d")
FUNCTION = "ray_distill.testing.models:tiny_text_model"


def _config(folder: Path, teacher: str, **changes: Any) -> Campaign:
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder / "out"),
            "snapshot": {"source": str(folder / "rows.jsonl")},
            "labels": {"teacher": {"model": teacher}, **changes.pop("labels", {})},
            "student": {"losses": {"soft": {}}, "training": {"engine": "torch", **changes.pop("training", {})}}
            | changes.pop("student", {}),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier."""
    return str(write_tiny_text_model(tmp_path_factory.mktemp("teacher") / "teacher", CLASSES, 0))


@pytest.mark.parametrize("large", [False, True])
def test_tokens_without_an_embedding_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, large: bool) -> None:
    """Some families save more tokens than their models embed: no fault while no row has them."""
    folder = write_tiny_text_model(tmp_path / "teacher", CLASSES, 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<new{number}>" for number in range(7)])
    tokenizer.save_pretrained(folder)
    if large:
        monkeypatch.setattr(sizes, "LOADED_BYTES", 0)
    (note,) = check_models(_config(tmp_path, str(folder)))
    assert f"token ids up to {len(tokenizer) - 1}, and the model embeds {len(tokenizer) - 7} tokens" in note


def test_batch_norm_is_noted_where_passes_change_the_curve(tmp_path: Path) -> None:
    """One pass on one worker has one curve; more passes, or workers, have another."""
    model = str(write_tiny_image_model(tmp_path / "resnet", CLASSES, 0, architecture="resnet"))
    sizes = {"global_batch": 16, "micro_batch": 16}
    config = _config(tmp_path, model, task="image_classification", training=sizes)
    assert check_models(config) == ()
    config = _config(tmp_path, model, task="image_classification", training={**sizes, "micro_batch": 8})
    (note,) = check_models(config)
    assert "batch norms" in note and "micro_batch 8" in note


def test_a_throwing_teacher_of_a_finished_store_is_not_called(tmp_path: Path, teacher: str) -> None:
    """The store describes its teacher: a function is neither imported nor run again."""
    function = {"teacher": {"model": "nowhere.at_all:teacher"}, "signal": {"estimator": "topk", "k": 1}}
    student = {"model": {"from": "module", "model": FUNCTION}}
    config = _config(tmp_path, teacher, labels=function, student=student)
    with pytest.raises(Exception, match="cannot import nowhere.at_all:teacher"):
        check_models(config, call=True)
    _fill(config, mass=0.9)
    assert check_models(config, call=True) == ()


def test_a_function_whose_actors_need_gpus_is_not_called_here(tmp_path: Path) -> None:
    """It may move its model to a device that this machine lacks; its arguments are compared with its signature."""
    labels: dict[str, Any] = {"teacher": {"model": f"{__name__}:of_gpus"}, "resources": {"gpus": 1}}
    student = {"model": {"from": "module", "model": FUNCTION}}
    assert check_models(_config(tmp_path, "", labels=labels, student=student), call=True) == ()
    labels["teacher"]["arguments"] = {"size": 3}
    with pytest.raises(ConfigError, match=r"labels\.teacher\.arguments: .*:of_gpus takes \(\).*found \{'size': 3\}"):
        check_models(_config(tmp_path, "", labels=labels, student=student), call=True)


def test_only_a_dry_run_calls_a_function(tmp_path: Path) -> None:
    """It may hang or end its process: commands that label call it in tasks with a time limit."""
    config = _config(tmp_path, f"{__name__}:of_gpus", student={"model": {"from": "module", "model": FUNCTION}})
    assert check_models(config) == ()
    with pytest.raises(ModelError, match="labels.teacher.model: .*AssertionError: called"):
        check_models(config, call=True)


@pytest.mark.parametrize(
    "model",
    [
        {"from": "config"},
        {"from": "teacher_layers", "keep": 1},
        {"from": "teacher_width", "overrides": {"hidden_size": 16}},
    ],
)
def test_a_student_made_of_a_teacher_that_is_a_function_is_refused_before_it_labels(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    """Whether or not the config names the classes; the function is not called."""
    for named in ({}, {"classes": CLASSES}):
        snapshot = {"source": str(tmp_path / "rows.jsonl"), **named}
        config = _config(tmp_path, f"{__name__}:of_gpus", student={"model": model}, snapshot=snapshot)
        with pytest.raises(ConfigError, match=rf"student\.model\.from is {model['from']}, but .*module"):
            check_models(config)


def of_gpus() -> None:
    """A teacher that this machine cannot make."""
    raise AssertionError("called without a GPU")


def test_of_a_large_student_the_head_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is read and no step is taken; config, tokenizer and vocabulary are still compared."""
    model = str(write_tiny_causal_model(tmp_path / "teacher", 0))
    student = str(write_tiny_causal_model(tmp_path / "student", 1, vocab_size=200))
    monkeypatch.setattr(sizes, "LOADED_BYTES", 10)
    for values in (
        {"from": "teacher_layers", "keep": 1},
        {"overrides": {"num_hidden_layers": 1}, "embeddings": "copy"},
    ):
        config = _config(tmp_path, model, task="causal_lm", student={"model": values})
        assert open_student(config, AnswerSpace(size=264)) is None
        assert check_models(config) == ()
    config = _config(tmp_path, model, task="causal_lm", student={"model": {"from": "checkpoint", "model": student}})
    with pytest.raises(ConfigError, match=r"student\.model: .*vocabulary of 200, fewer than the 261 tokens"):
        check_models(config)
    config = _config(tmp_path, model, task="causal_lm", labels={"hidden": {"layers": [5], "pool": "token"}})
    with pytest.raises(TeacherRefused, match="has layer 5, but the teacher has 3 hidden states"):
        check_models(config)


def test_a_temperature_at_which_a_filled_store_keeps_too_little_is_refused(tmp_path: Path, teacher: str) -> None:
    """Before a rank starts, from a sample of the stored units."""
    config = _config(tmp_path, teacher)
    _fill(config, mass=0.3)
    with pytest.raises(ConfigError, match=r"student\.losses\.soft\.temperature 1: .* only 0\.30 .* at least 0\.5"):
        check_models(config, teacher=False)


def test_a_store_of_other_settings_is_refused_before_the_teacher_is_loaded(tmp_path: Path, teacher: str) -> None:
    """Training alone reads what the store has, whatever the settings for labelling are."""
    signal = {"estimator": "topk", "k": 1}
    config = _config(tmp_path, teacher, labels={"signal": signal})
    _fill(config, mass=0.9)
    assert check_models(config) == ()
    for changes, message in (
        ({"signal": {**signal, "k": 2}}, r"labels\.signal\.k.* 1.* 2"),
        ({"signal": signal, "hidden": {"layers": [-1]}}, r"hidden"),
        ({"signal": signal, "resources": {"batch": 8}}, r"batch"),
    ):
        other = _config(tmp_path, teacher, labels=changes)
        with pytest.raises(StoreMismatch, match=f"was made for other settings: .*{message}.*Set labels.store"):
            check_models(other)
    assert check_models(_config(tmp_path, teacher, labels={"signal": {**signal, "k": 2}}), teacher=False) == ()


def test_classes_of_a_filled_store_are_compared(tmp_path: Path, teacher: str) -> None:
    """With the names that the configuration has."""
    config = _config(tmp_path, teacher, snapshot={"source": "rows.jsonl", "classes": ["a", "x"]})
    _fill(config, mass=0.9)
    with pytest.raises(TeacherRefused, match="label store.*'x'"):
        check_models(config, teacher=False)


def _fill(config: Campaign, *, mass: float, rows: int = 40) -> None:
    """Make the campaign's store, of one class a row with this mass and the rest in the tail."""
    signal = config.labels.signal.model_copy(update={"estimator": "topk", "k": 1, "temperatures": (1.0,)})
    config = config.model_copy(update={"labels": config.labels.model_copy(update={"signal": signal})})
    space = AnswerSpace(names=CLASSES, size=len(CLASSES))
    manifest = make_manifest(config, TeacherFacts(fingerprint="t", space=space, layers=(), head_url=None, describe={}))
    ids = table_of(rows, 1, 0.0).sort_by("row_id")["row_id"].combine_chunks()
    steps = np.arange(rows + 1, dtype=np.int64)
    labels = Distributions(
        classes=len(CLASSES),
        temperatures=(1.0,),
        row_offsets=steps,
        position=np.zeros(rows, np.int32),
        entry_offsets=steps,
        ids=np.zeros(rows, np.int32),
        logp=np.full(rows, np.log(mass), np.float32),
        log_tail=np.full((rows, 1), np.log1p(-mass), np.float32),
        entropy=np.ones(rows, np.float32),
    )
    found = fit_store(manifest, ids, signal_of(distributions=labels))
    store = create_or_open(config.store_url, with_found(manifest, found, {}))
    snapshot = OneShard(row_ids=ids)
    (unit,) = store.pending(snapshot)
    receipt = write_attempt(
        config.store_url, store.manifest, unit, row_ids=ids, signal=signal_of(distributions=labels), rejected=[]
    )
    store.commit([receipt])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"from": "teacher_layers", "keep": 9}, r"student\.model\.keep is 9, but the teacher has 2 layers"),
        (
            {"from": "teacher_layers", "keep": 1, "vocabulary": {"tokens": 5}},
            r"student\.model\.vocabulary\.tokens: 5 is",
        ),
        ({"from": "teacher_width", "overrides": {"hidden_size": 20}}, r"student\.model\.overrides: found 1 heads and"),
        ({"overrides": {"hiden_size": 16}}, r"student\.model\.overrides\.hiden_size: .*did you mean hidden_size"),
    ],
)
def test_a_student_is_checked_before_the_classes_are_known(
    tmp_path: Path, teacher: str, model: dict[str, Any], message: str
) -> None:
    """The labels of the snapshot name them, and its head alone depends on them."""
    labels = {"teacher": {"model": teacher, "head": {}}}
    assert check_models(_config(tmp_path, teacher, labels=labels)) == ()
    with pytest.raises(ConfigError, match=message):
        check_models(_config(tmp_path, teacher, labels=labels, student={"model": model}))
