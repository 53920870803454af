"""A language model trained from labels that are read while it trains: the curve of one that has them in memory."""

from pathlib import Path
from typing import Any

import pytest
from language_store_lab import config_of, documents, labelled, train, write_texts
from training_lab import Recorder, learnt

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, MixtureConfig
from ray_distill.students.run import TrainingJob, run_arms
from ray_distill.testing.gloo import run_gloo
from ray_distill.testing.models import write_tiny_causal_model

STREAM = {"stream": "always", "memory_gb": 1e-3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and 150 texts, a few of them too short to learn from."""
    folder = tmp_path_factory.mktemp("streaming")
    write_tiny_causal_model(folder / "teacher", seed=1)
    write_texts(folder / "texts.jsonl", [*documents(150, 4), "a", "b", "c", "d", "e", "f"])
    return folder


def campaign(home: Path, **training: Any) -> Campaign:
    """Units of 8 documents, four of them open at a time; labels are drawn, and a teacher's layer is matched."""
    config = config_of(
        home, home / "texts.jsonl", training={"shuffle_units": 4, "epochs": 2, **training}, unit_rows=8,
        teacher={"model": str(home / "teacher")}, signal={"estimator": "sampled", "draws": 6},
        hidden={"layers": [-1], "pool": "token"})
    return config.model_copy(update={"student": config.student.model_copy(update={
        "losses": {**config.student.losses, "hidden": type(config.student.losses["soft"])(weight=0.5)}})})


@pytest.fixture(scope="module")
def labels(home: Path) -> LabelSetRef:
    """Their labels."""
    return labelled(campaign(home))


def curve(recorder: Recorder) -> list[dict[str, float]]:
    """Every metric of every step but those of speed and memory."""
    return [learnt(recorder.curve[step]) for step in sorted(recorder.curve)]


@pytest.mark.parametrize("layout", [{}, {"packed": 64}, {"micro_tokens": 128}], ids=str)
def test_the_curve_is_that_of_memory(
    home: Path, labels: LabelSetRef, tmp_path: Path, layout: dict[str, int]
) -> None:
    """Losses, validation and weights of every step to the bit: units are read on threads, in pieces, and dropped."""
    _, memory = train(campaign(home, **layout), labels, tmp_path / "memory")
    _, streamed = train(campaign(home, **layout, **STREAM), labels, tmp_path / "streamed")
    assert curve(streamed) == curve(memory)
    assert len(memory.curve) > 12


@pytest.mark.parametrize("how", ["source", "average"])
def test_mixtures_are_streamed_as_they_are_held(
    home: Path, labels: LabelSetRef, tmp_path: Path, how: str
) -> None:
    """A second store of the same teacher, with labels of other texts too: each document is taught by its own labels."""
    write_texts(tmp_path / "more.jsonl", [*documents(150, 4), *documents(60, 7)])
    other = config_of(tmp_path, tmp_path / "more.jsonl", unit_rows=8, teacher={"model": str(home / "teacher")},
                      signal={"estimator": "topk", "k": 48})
    mixed, own = labelled(other), config_of(
        home, home / "texts.jsonl", training={"shuffle_units": 4}, unit_rows=8, store=str(tmp_path / "own"),
        teacher={"model": str(home / "teacher")}, signal={"estimator": "topk", "k": 48})
    (tmp_path / "mixed.json").write_text(mixed.to_json())
    first, curves = labelled(own), {}
    for name, stream in (("memory", {"stream": "never"}), ("streamed", STREAM)):
        student = own.student.model_copy(update={
            "training": own.student.training.model_copy(update=stream),
            "mixture": MixtureConfig.model_validate({
                "how": how, "weight": 2.0, "others": [{"labels": str(tmp_path / "mixed.json")}]})})
        recorder = Recorder()
        run_arms(TrainingJob(
            config=own.model_copy(update={"student": student}).model_dump(mode="json", by_alias=True), labels=first,
            arms=("student",), output=str(tmp_path / name), others=(mixed,)), recorder)
        curves[name] = curve(recorder)
    assert curves["streamed"] == curves["memory"] and len(curves["memory"]) > 6
    # One teacher, whose labels of other texts are as good: nearer to the student at every step than others' would be.
    plain = train(own, first, tmp_path / "plain")[1]
    assert max(step["loss_soft"] for step in curves["memory"]) < 1.5 * max(
        plain.curve[step]["loss_soft"] for step in plain.curve)


def _ranks(config: Campaign, labels: LabelSetRef, output: str) -> list[dict[str, float]]:
    recorder = Recorder()
    run_arms(TrainingJob(config=config.model_dump(mode="json", by_alias=True), arms=("student",), output=output,
                         labels=labels), recorder)
    return curve(recorder)


@pytest.mark.slow
def test_ranks_share_the_scan_and_the_curve(home: Path, labels: LabelSetRef, tmp_path: Path) -> None:
    """Two ranks, each reading the units of its own lanes: the curve of one in memory, within rounding."""
    _, memory = train(campaign(home), labels, tmp_path / "memory")
    for found in run_gloo(_ranks, 2, campaign(home, workers=2, **STREAM), labels, str(tmp_path / "streamed")):
        for ours, theirs in zip(found, curve(memory), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
