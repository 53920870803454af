"""Models that answer once a row: the answers of each alone, for the rows that all accept."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.evaluation.predict.rows import answer_rows, join_predictions, predict_rows
from ray_distill.models.io.load import load_model
from ray_distill.tasks.answers.classes import judge
from ray_distill.tasks.answers.classes.evaluation.predictions import log_probabilities
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_text_model

TASK = TASKS["text_classification"]
TEXTS = ["good film", "", "bad", "so so"]


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    root = tmp_path_factory.mktemp("models")
    models = {
        arm: load_model(str(write_tiny_text_model(root / arm, ["no", "yes"], seed)), task=TASK.name)
        for seed, arm in enumerate(("teacher", "student"))
    }
    return Panel(task=TASK, models=models, classes=("yes", "no"), batch=2, bins=10)


def rows_of(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array([row_id(number) for number in range(len(texts))], pa.binary(16)),
            "text": texts,
            "label": pa.array([0, 1, None, 1][: len(texts)], pa.int32()),
            "count": pa.array(range(1, len(texts) + 1), pa.int64()),
            "locale": ["de", "en", "de", "en"][: len(texts)],
        }
    )


def test_predictions_are_those_of_each_row_alone(panel: Panel) -> None:
    """In the wanted order of classes, whatever stands beside a row in its batch; a rejected row has none."""
    for arm, table in predict_rows(panel, rows_of(TEXTS), columns=log_probabilities).items():
        assert table["row_id"].to_pylist() == [row_id(0), row_id(2), row_id(3)]
        processor = panel.models[arm].processor
        for row, text in zip(table["logp"].to_pylist(), (TEXTS[0], *TEXTS[2:]), strict=True):
            ids = torch.from_numpy(processor.texts([text])["input_ids"].values.astype(np.int64))[None]  # type: ignore[attr-defined]
            with torch.no_grad():
                logits = panel.models[arm].module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            assert row == pytest.approx(logits.log_softmax(-1)[[1, 0]].tolist(), abs=1e-5)


def test_all_models_are_judged_on_the_rows_that_all_accept(panel: Panel) -> None:
    """Answers are joined with what is known of the rows; damaged rows, and timed ones, are answered too."""
    rows = rows_of(TEXTS)
    possible = panel.task.inputs.corruptions
    assert set(panel.columns) <= set(rows.column_names) and judge.default_corruptions(possible) == possible
    plain, kept = predict_rows(panel, rows, columns=log_probabilities), rows.take([0, 2, 3])
    for arm, table in judge.answer(panel, rows, ("locale",)).items():
        assert table.equals(join_predictions(kept, plain[arm], teacher=plain["teacher"], slices=("locale",)))
    student = panel.only(["student"])
    damaged = judge.answer_damaged(student, kept)
    assert list(damaged) == ["student"] and damaged["student"].equals(join_predictions(kept, plain["student"]))
    timed = judge.timed(panel, rows)
    assert timed.examples == 3 and timed.rates == {}
    found = timed.runs["student"](np.array([2, 0], dtype=np.int64))
    assert isinstance(found, torch.Tensor) and found.shape == (2, 2)
    assert found.log_softmax(-1)[0].tolist() == pytest.approx(plain["student"]["logp"][2].as_py(), abs=1e-5)


def test_a_damaged_row_that_a_model_rejects_is_an_error(panel: Panel) -> None:
    """Nobody is measured on fewer damaged rows than others."""
    with pytest.raises(EvaluationError, match="gave no prediction for 1 of 4 rows"):
        judge.answer_damaged(panel, rows_of(TEXTS))


def test_what_cannot_be_answered_is_an_error_that_names_it(panel: Panel, tmp_path: Path) -> None:
    """No row that a model accepts; a model of other classes."""
    with pytest.raises(EvaluationError, match="accepts none of the 1 rows: empty text"):
        predict_rows(panel, rows_of([""]), columns=log_probabilities)
    other = load_model(str(write_tiny_text_model(tmp_path, ["no", "maybe"], 0)), task=TASK.name)
    mixed = Panel(task=TASK, models={"teacher": other}, classes=("yes", "no"), batch=2, bins=10)
    with pytest.raises(EvaluationError, match=r"only the snapshot has \['yes'\], only the model has \['maybe'\]"):
        predict_rows(mixed, rows_of(TEXTS), columns=log_probabilities)


def test_predictions_are_put_in_the_order_of_the_rows() -> None:
    """Answers may come in any order; a missing one is an error that counts."""
    rows = rows_of(TEXTS)
    logp = pa.array([[-float(number), 0.0] for number in range(4)], pa.list_(pa.float32()))
    answers = pa.table({"row_id": rows["row_id"], "logp": logp})
    shuffled = answers.take([2, 0, 3, 1])
    joined = join_predictions(rows, shuffled, slices=("locale",))
    assert joined["row_id"].equals(rows["row_id"]) and joined["logp"].equals(answers["logp"])
    assert joined.column_names == ["row_id", "logp", "count", "label", "locale"]
    with pytest.raises(EvaluationError, match="no prediction for 3 of 4 rows"):
        join_predictions(rows, shuffled.slice(3))


def test_facts_of_a_model_that_its_table_states_are_kept(panel: Panel) -> None:
    """Metadata of the schema comes through batches, the order of rows and the joining with what is known of them."""

    def columns(panel: Panel, arm: str, logits_NV: torch.Tensor) -> pa.Table:
        return log_probabilities(panel, arm, logits_NV).replace_schema_metadata({"model": arm})

    for arm, table in answer_rows(panel, rows_of(TEXTS), columns=columns).items():
        assert table.schema.metadata == {b"model": arm.encode()}
