"""Multi-label models over rows: decisions by the thresholds of each model, the trivial answer, and serving."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit

from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.answers.labels import answer_requests, judge
from ray_distill.tasks.answers.labels.evaluation import predictions
from ray_distill.tasks.answers.labels.evaluation.measures import read_scores
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_text_model

TASK = TASKS["text_multi_label"]
TEXTS = ["good film", "", "bad", "so so"]
THRESHOLDS = {"yes": 0.9, "no": 0.1}


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    root = tmp_path_factory.mktemp("models")
    models = {
        arm: load_model(
            str(write_tiny_text_model(root / arm, ["no", "yes"], seed, problem_type="multi_label_classification")),
            task=TASK.name,
        )
        for seed, arm in enumerate(("teacher", "student"))
    }
    models["student"] = replace(models["student"], decision={"thresholds": THRESHOLDS})
    return Panel(task=TASK, models=models, classes=("yes", "no"), batch=2, bins=10)


def rows_of(texts: list[str]) -> pa.Table:
    return pa.table(
        {
            "row_id": pa.array([row_id(number) for number in range(len(texts))], pa.binary(16)),
            "text": texts,
            "label": pa.array([[0], [1], None, [0, 1]][: len(texts)], pa.list_(pa.int32())),
            "count": pa.array(range(1, len(texts) + 1), pa.int64()),
        }
    )


def logits_of(panel: Panel, arm: str, text: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the logits of one text, in the panel's order of classes."""
    processor = panel.models[arm].processor
    ids = torch.from_numpy(processor.texts([text])["input_ids"].values.astype(np.int64))[None]  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = panel.models[arm].module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return np.asarray(logits.double())[[1, 0]]


def test_answers_are_log_odds_and_what_each_model_decides(panel: Panel) -> None:
    """In the snapshot's order of classes; the thresholds are the model's own, by name, else 0.5."""
    found = judge.answer(panel, rows_of(TEXTS))
    for arm, threshold in (("teacher", [0.5, 0.5]), ("student", [0.9, 0.1])):
        table = found[arm]
        assert table["row_id"].to_pylist() == [row_id(0), row_id(2), row_id(3)]
        assert predictions.thresholds_of(table, 2).tolist() == threshold
        for text, z, decided in zip(
            (TEXTS[0], *TEXTS[2:]), table["log_odds"].to_pylist(), table["decided"].to_pylist(), strict=True
        ):
            wanted = logits_of(panel, arm, text)
            assert z == pytest.approx(wanted.tolist(), abs=1e-5)
            assert decided == np.flatnonzero(expit(wanted) >= threshold).tolist()
    scores = read_scores(found["student"])
    assert scores.truth_NV.tolist() == [[1, 0], [-1, -1], [1, 1]] and scores.threshold_V.tolist() == [0.9, 0.1]
    assert scores.teacher_decided_NV is not None
    assert scores.teacher_decided_NV.tolist() == read_scores(found["teacher"]).decided_NV.tolist()
    measured = judge.measure(found["student"], Resampling(seed=0, bootstrap=100))
    assert set(TASK.answers.metrics.names) == set(measured)


def test_damaged_and_timed_rows_are_answered_too(panel: Panel) -> None:
    """Without a reference, by the same thresholds."""
    rows = rows_of(TEXTS).take([0, 2, 3])
    damaged = judge.answer_damaged(panel.only(["student"]), rows)["student"]
    assert "teacher_log_odds" not in damaged.column_names
    assert predictions.thresholds_of(damaged, 2).tolist() == [0.9, 0.1]
    assert judge.timed(panel, rows).examples == 3 and set(panel.columns) <= set(rows.column_names)


def test_served_answers_are_what_the_judge_decided(panel: Panel) -> None:
    """The file that is copied beside the checkpoint reads the thresholds that were saved, and applies them alike."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(np.round(rng.normal(size=(50, 2)) * 2, 2))
    facts = {"decision": dict(panel.models["student"].decision)}
    served = answer_requests.columns(logits, ["yes", "no"], facts)
    decided = predictions.decisions(panel, "student", logits)["decided"].to_pylist()
    assert served["labels"] == [[("yes", "no")[label] for label in row] for row in decided]
    assert served["probabilities"] == pytest.approx(expit(logits.numpy()))
    plain = answer_requests.columns(logits, ["yes", "no"], {})
    assert plain["labels"] == [[("yes", "no")[label] for label in np.flatnonzero(row >= 0)] for row in logits.numpy()]
    assert answer_requests.columns(logits[:0], ["yes", "no"], {}) == {"labels": [], "probabilities": []}
    assert answer_requests.DEFAULT_THRESHOLD == predictions.DEFAULT_THRESHOLD


class FakeSnapshot:
    """Splits by name."""

    def __init__(self, **splits: list[tuple[list[int] | None, int]]) -> None:
        self.splits = splits

    def read(self, split: str, columns: list[str]) -> pa.Table:
        sets, counts = zip(*self.splits[split], strict=True) if self.splits[split] else ((), ())
        found = {"label": pa.array(sets, pa.list_(pa.int32())), "count": pa.array(counts, pa.int64())}
        return pa.table(found).select(columns)


def trivial(panel: Panel, **splits: list[tuple[list[int] | None, int]]) -> dict[str, float]:
    snapshot: Snapshot = FakeSnapshot(**splits)  # type: ignore[assignment]
    return dict(judge.trivial(panel, snapshot))


def test_the_trivial_answer_is_the_commonest_set_of_the_train_split(panel: Panel) -> None:
    """By count; mAP is that of equal scores. Without truth there is no score, without labels no F1."""
    train: list[tuple[list[int] | None, int]] = [([0], 3), ([1], 2), (None, 9), ([1], 2)]
    found = trivial(panel, train=train, calibration=[([1], 3), ([0, 1], 1), (None, 5)])
    assert found == pytest.approx({"subset_accuracy": 0.75, "micro_f1": 8 / 9, "map": (1 + 0.25) / 2})
    assert trivial(panel, train=train, calibration=[(None, 5)]) == {} == trivial(panel, train=[], calibration=train)
    assert trivial(panel, train=[([], 1)], calibration=[([], 2)]) == {"subset_accuracy": 1.0}
