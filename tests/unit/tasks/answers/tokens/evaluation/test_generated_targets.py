"""What encoder-decoders write, held against the references."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.labels.model import rowids
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.answers.tokens.evaluation.generated_targets import distance, measure_targets, write_targets
from ray_distill.tasks.answers.tokens.evaluation.measures import measure
from ray_distill.tasks.answers.tokens.evaluation.predictions import predict_documents, token_batches
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_seq2seq_model

TASK = TASKS["seq2seq"]
PAIRS = [("a source", "its target"), ("a considerably longer source", "x y"), ("no", None), ("s", "q")]


def _rows() -> pa.Table:
    ids = pa.array([row_id(number) for number in range(len(PAIRS))], rowids.ROW_ID)
    return pa.table({"row_id": ids, "text": [pair_text(*pair) for pair in PAIRS], "count": [1, 3, 1, 1]})


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    folder = write_tiny_seq2seq_model(tmp_path_factory.mktemp("model"), seed=0, architecture=request.param)
    return load_model(str(folder), task="seq2seq")


def _step_by_step(model: Model, source: str, most: int) -> str:
    """Greedy by hand: the whole model again for every token."""
    tokenizer = model.processor.tokenizer  # type: ignore[attr-defined]
    ids, written = torch.tensor([tokenizer(source)["input_ids"]]), [0]
    for _ in range(most):
        with torch.no_grad():
            logits = model.module(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
        if written[-1] == 1:
            break
    return str(tokenizer.decode(written, skip_special_tokens=True))


def test_targets_are_the_likeliest_token_each_time(model: Model) -> None:
    """In a padded batch as alone; rows without a reference are left out, the others keep their order and counts."""
    found = write_targets({"teacher": model}, _rows(), task=TASK, batch=2)["teacher"]
    assert found["reference"].to_pylist() == ["its target", "x y", "q"] and found["count"].to_pylist() == [1, 3, 1]
    assert found["written"].to_pylist() == [_step_by_step(model, source, 64) for source, target in PAIRS if target]


def test_a_model_that_cannot_write_is_refused(model: Model) -> None:
    """A function's own, which does not know how; with the way out."""
    with pytest.raises(EvaluationError, match=r"Identity\) cannot write.*evaluation.written: 0"):
        write_targets({"teacher": replace(model, module=nn.Identity())}, _rows(), task=TASK, batch=2)


@pytest.mark.parametrize(
    ("ours", "theirs", "errors"),
    [
        ("a b c", "a b c", 0),
        ("", "a b", 2),
        ("a b", "", 2),
        ("a x c", "a b c", 1),
        ("b c", "a b c", 1),
        ("a a b c", "a b c", 1),
        ("c b a", "a b c", 2),
    ],
)
def test_a_distance_counts_the_fewest_changes(ours: str, theirs: str, errors: int) -> None:
    """Words changed, left out or put in, whichever way round."""
    assert distance(ours.split(), theirs.split()) == distance(theirs.split(), ours.split()) == errors


def test_measures_weigh_documents_by_count(model: Model) -> None:
    """One right of weight 3, one with two wrong of three words; the interval is over documents."""
    table = pa.table({"count": [3, 1], "reference": ["a b", "a b c"], "written": ["a  b", "a x y"]})
    found = measure_targets(table, Resampling(seed=0, bootstrap=200))
    assert found["exact_match"].value == 0.75 and found["word_error_rate"].value == pytest.approx(2 / 9)
    assert all(one.n == 2 and one.low <= one.value <= one.high for one in found.values())


def test_likelihoods_are_of_the_targets(model: Model) -> None:
    """NLL, tokens and the rest by transformers' own loss over the target tokens; a model is nought from itself."""
    panel = Panel(task=TASK, models={"teacher": model, "student": model}, batch=2, bins=5)
    found = predict_documents(panel, _rows())["student"]
    assert found["tokens"].to_pylist() == [len(target) + 1 for _, target in PAIRS if target]
    tokenizer = model.processor.tokenizer  # type: ignore[attr-defined]
    for row, (source, target) in enumerate((source, target) for source, target in PAIRS if target):
        ids, labels = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (source, target))
        with torch.no_grad():
            loss = float(model.module(input_ids=ids, labels=labels).loss) * labels.numel()
        assert found["nll"][row].as_py() == pytest.approx(loss, rel=1e-4)
    metrics = measure(found, Resampling(seed=0, bootstrap=100, bins=5))
    assert metrics["kl_from_teacher"].value == pytest.approx(0, abs=1e-6) and metrics["agreement"].value == 1.0


def test_batches_are_bound_by_what_is_written(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are as many as decoder tokens, however long the sources are."""
    encoded = TASK.inputs.encode(_rows(), model.processor)
    monkeypatch.setattr("ray_distill.tasks.answers.tokens.evaluation.predictions.LOGITS_BYTES", 4 * 264 * 8)
    panel = Panel(task=TASK, models={"teacher": model}, batch=9, bins=5)
    found = [part.tolist() for part in token_batches(panel, encoded)]
    lengths = np.diff(encoded.features["target"].offsets)
    assert sorted(sum(found, [])) == [0, 1, 2]
    assert all(len(part) == 1 or max(lengths[part]) * len(part) <= 8 for part in found) and len(found) == 2
