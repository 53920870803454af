"""An exported arm: the best weights, what was fitted with them, and the marker that names both."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from ray_distill.artifacts import Calibration, LabelSetRef, SnapshotRef
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.students.export import export_arm, exported_arm, exported_calibration, model_card
from ray_distill.students.loop.best_result import Best
from ray_distill.students.loop.validation import Score
from ray_distill.students.process_group import Ranks
from ray_distill.testing.models import write_tiny_text_model

LABELS = LabelSetRef(
    store="", fingerprint="f", log_length=0, log_digest="", snapshot=SnapshotRef(url="", fingerprint="")
)
ALONE = Ranks(rank=0, world=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_tiny_text_model(tmp_path_factory.mktemp("model") / "student", ("no", "yes"), seed=0)
    return load_model(str(folder), task="text_classification")


def best_of(model: Model) -> Best:
    """Weights that are all 1 more than the model's."""
    weights = {name: value + 1 for name, value in model.module.state_dict().items()}
    return Best(level=0.5, score=Score(value=0.5, metrics={"validation_nll": 0.5}), step=3, weights=weights)


def test_the_decision_is_fitted_to_the_exported_weights(model: Model, tmp_path: Path) -> None:
    """The family gets the model with its best weights, once; what it returns is loaded with them."""
    best, seen = best_of(model), list[Model]()

    def decide(trained: Model) -> dict[str, object]:
        seen.append(trained)
        return {"thresholds": {"yes": 0.25}}

    ref = export_arm(
        str(tmp_path),
        "student",
        model,
        best,
        labels=LABELS,
        facts={"campaign": "c", "task": "t"},
        plan={"seed": 1},
        decide=decide,
        ranks=ALONE,
    )
    (trained,) = seen
    again = load_model(ref.url, task="text_classification")
    assert again.decision == {"thresholds": {"yes": 0.25}}
    for name, value in best.weights.items():
        assert torch.equal(trained.module.state_dict()[name], value), name
        assert torch.equal(again.module.state_dict()[name], value), name
        assert not torch.equal(model.module.state_dict()[name], value), name
    assert exported_calibration(ref.url) is None
    again = partial(exported_arm, str(tmp_path), "student", {"seed": 1}, labels=LABELS, ranks=ALONE)
    assert again() == ref
    shutil.rmtree(ref.url)
    assert again() is None, "whoever deletes it has it trained again"


def test_an_arm_is_calibrated_before_its_decision_is_fitted(model: Model, tmp_path: Path) -> None:
    """The decision sees the calibrated model; facts and card state how its temperature came about."""
    found = Calibration(
        temperature=2.0, where="decision", against="true labels", rows=90, nll_before=0.5, nll_after=0.4, ece_before=0.2
    )
    seen = list[Model]()

    def calibrate(trained: Model) -> tuple[Model, Calibration]:
        assert trained.decision == {}, "what an earlier training fitted is not this one's"
        return replace(trained, decision={"temperature": 2.0}), found

    def decide(trained: Model) -> dict[str, object]:
        seen.append(trained)
        return {"thresholds": {"yes": 0.25}}

    ref = export_arm(
        str(tmp_path),
        "student",
        replace(model, decision={"temperature": 9.0, "thresholds": {"no": 0.9}}),
        best_of(model),
        labels=LABELS,
        facts={"campaign": "c", "task": "t"},
        plan={"seed": 1},
        calibrate=calibrate,
        decide=decide,
        ranks=ALONE,
    )
    again = load_model(ref.url, task="text_classification")
    assert again.decision == {"temperature": 2.0, "thresholds": {"yes": 0.25}} and seen[0].temperature == 2
    told = exported_calibration(ref.url)
    assert told is not None and told.temperature == 2 and (told.ece_before, told.rows) == (0.2, 90)
    card = (Path(ref.url) / "README.md").read_text()
    assert f"Calibration: {found.in_words}. Validation results are from before it." in card
    assert "| calibration |" not in card and "views" not in card


def test_the_card_states_the_views_among_the_rows(model: Model) -> None:
    """How many, of how many rows, of which kinds; without views it is silent, as the test above shows."""
    counts = {"rows": 1200, "views": 2400, "kept": {"cut": 1100, "neighbours": 90}, "left_out": {"unchanged": 1210}}
    card = model_card("student", model, best_of(model), {"campaign": "c", "task": "t", "views": counts})
    stated = "In the snapshot, 1,190 train rows are views of the other 1,200 (cut 1,100, neighbours 90); the table has"
    assert stated in card and "| views |" not in card
