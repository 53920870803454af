"""Training encoder-decoders from stored labels: the fused losses of a padded batch are those of whole logits."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model import rowids
from ray_distill.losses.base import StudentOutput
from ray_distill.losses.cross_entropy import Hard, TeacherHard
from ray_distill.losses.fused import HeadRequest, Part
from ray_distill.losses.hidden import HiddenMatch
from ray_distill.losses.soft import Soft
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.text.seq2seq_processor import pair_processor
from ray_distill.snapshots.pairs import pair_text
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.modules.student_module import PLACES, StudentModule, make_projections
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import open_teacher
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import tiny_pair_tokenizer, write_tiny_seq2seq_model

PAIRS = [("a source", "its target"), ("a considerably longer source", "x"), ("s", "longer than its source"), ("u", "v")]
#: Rows the teacher has labelled: all but the last.
LABELLED = 3
TASK = TASKS["seq2seq"]
LOSSES = (Soft(), Hard(), TeacherHard())


def _rows(rows: int = len(PAIRS)) -> pa.Table:
    ids = pa.array([row_id(number) for number in range(rows)], rowids.ROW_ID)
    return pa.table({"row_id": ids, "text": [pair_text(*pair) for pair in PAIRS[:rows]]}).sort_by("row_id")


def _set(folder: Path, model: Model, layers: tuple[int, ...] = ()) -> PositionExamples:
    teacher = open_teacher(TeacherConfig(model=str(folder)), task="seq2seq")
    encoded = TASK.inputs.encode(_rows(LABELLED), teacher.model.processor)
    signal = teacher.answer(
        encoded, LabelRequest(estimator="topk", k=9, temperatures=(1.0,), layers=layers, pool="token")
    )
    return build_examples(
        _rows(),
        answers=TokenFormat(task=TASK, vocabulary=model.vocabulary),
        processor=model.processor,
        labels=(encoded.row_ids, signal),
    )


@pytest.fixture(scope="module", params=["t5", "bart"])
def folders(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A teacher and a student of one family, without dropout."""
    base, family = tmp_path_factory.mktemp("models"), request.param
    quiet: dict[str, Any] = {"dropout_rate": 0.0} if family == "t5" else {"dropout": 0.0}
    return tuple(
        write_tiny_seq2seq_model(  # type: ignore[return-value]
            base / name, seed=seed, architecture=family, **quiet
        )
        for seed, name in enumerate(("teacher", "student"))
    )


def _gradients(bundle: StudentModule) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in bundle.named_parameters()}


def test_fused_losses_are_those_of_whole_logits(folders: tuple[Path, Path]) -> None:
    """Sums and every gradient, in float64: soft and hard, of rows of unlike lengths, one of them without labels."""
    model = load_model(str(folders[1]), task="seq2seq")
    inputs, stored = _set(folders[0], model).batch(np.arange(len(PAIRS)))
    batch = to_device(stored, torch.device("cpu"))
    bundle = StudentModule(copy.deepcopy(model.module).double().train(), {}, fuse=True)
    assert bundle.fused is not None
    total, sums, _ = bundle(
        inputs, HeadRequest(batch=batch, parts=tuple(Part(loss=loss, factor=0.5) for loss in LOSSES))
    )[2]
    total.backward()

    whole = copy.deepcopy(model.module).double().train()
    places = inputs[PLACES]
    logits = whole(**{name: value for name, value in inputs.items() if name != PLACES}).logits.flatten(0, 1)[places]
    expected = torch.stack([loss(StudentOutput(logits_BV=logits), batch) for loss in LOSSES])
    (0.5 * expected.sum()).backward()
    torch.testing.assert_close(sums.double(), expected.detach().double(), rtol=1e-5, atol=1e-5)
    found, wanted = _gradients(bundle), {"student." + name: p.grad for name, p in whole.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def test_without_losses_the_bundle_gives_the_logits_of_the_targets(folders: tuple[Path, Path]) -> None:
    """Position by position, the rows' own tokens: what labels are true there is the target with its end."""
    model = load_model(str(folders[1]), task="seq2seq")
    data = _set(folders[0], model)
    inputs, batch = data.batch(np.array([2, 0]))
    logits, _, fused, _ = StudentModule(copy.deepcopy(model.module).eval(), {}, fuse=True)(inputs)
    assert fused is None
    expected, true = [], []
    for row in (2, 0):
        alone = TASK.inputs.collate(data.encoded, np.array([row]))
        with torch.no_grad():
            expected.append(model.module(**alone).logits[0])
        true += data.truth.values[data.truth.offsets[row] : data.truth.offsets[row + 1]].tolist()
    torch.testing.assert_close(logits, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert batch.labels_B.tolist() == true and true.count(1) == 2


def test_hidden_states_are_the_decoders(folders: tuple[Path, Path]) -> None:
    """One a target token on both sides, and a student that is its teacher is where it should be."""
    teacher = load_model(str(folders[0]), task="seq2seq")
    data = _set(folders[0], teacher, layers=(0, 2))
    inputs, batch = data.batch(np.arange(LABELLED))
    projections = make_projections(teacher, layers={2: 2}, widths={2: 32}, seed=0)
    with torch.no_grad():
        projections[2].weight.copy_(torch.eye(32))
    bundle = StudentModule(copy.deepcopy(teacher.module).eval(), projections, fuse=True)
    _, hidden, _, _ = bundle(inputs, HeadRequest(batch=batch, parts=()))
    assert hidden[2].shape == (len(batch.labels_B), 32)
    taught = batch.distil_B
    torch.testing.assert_close(hidden[2][taught], batch.hidden[2][taught], rtol=1e-3, atol=1e-3)
    loss = HiddenMatch(layers={2: 2}, kind="mse")(StudentOutput(logits_BV=hidden[2][:, :0], hidden=hidden), batch)
    assert float(loss.detach()) < 1e-3


def test_rows_without_labels_teach_by_their_own_text(folders: tuple[Path, Path]) -> None:
    """They have no weight in what follows the teacher, and theirs in the true tokens."""
    data = _set(folders[0], load_model(str(folders[1]), task="seq2seq"))
    row = int(np.flatnonzero(~data.distil)[0])
    _, batch = data.batch(np.array([row]))
    assert float(Soft().weight(batch)) == 0.0 and float(Hard().weight(batch)) == len(batch.labels_B) > 0


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_labels_of_other_targets_lengths_are_refused(tmp_path: Path, kind: Literal["t5", "bart"]) -> None:
    """A limit that has changed since is named with a row."""
    folder = write_tiny_seq2seq_model(tmp_path, seed=0, architecture=kind)
    model = load_model(str(folder), task="seq2seq")
    short = replace(
        model, processor=pair_processor(tiny_pair_tokenizer(), 64, LanguageConfig(target_length=5), start=0)
    )
    with pytest.raises(ConfigError, match="was labelled at other tokens than the student has"):
        _set(folder, short)


def test_a_head_with_a_bias_beside_it_is_trained_whole(tmp_path: Path) -> None:
    """Marian's: logits come out, the bias with them."""
    model = load_model(str(write_tiny_seq2seq_model(tmp_path, seed=0, architecture="bart")), task="seq2seq")
    data = _set(tmp_path, model)
    model.module.final_logits_bias.fill_(0.5)
    inputs, batch = data.batch(np.arange(2))
    bundle = StudentModule(copy.deepcopy(model.module).eval(), {}, fuse=True)
    logits, _, fused, _ = bundle(inputs, HeadRequest(batch=batch, parts=()))
    assert bundle.fused is None and fused is None and logits.shape == (len(batch.labels_B), 264)
