"""A language model trained from labels that are read while it trains: the curve of one that has them in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, MixtureConfig
from ray_distill.models.io.load import load_model
from ray_distill.students.data.concat import take_rows
from ray_distill.students.data.open_data import open_data
from ray_distill.students.data.open_sources import open_labels, open_sources
from ray_distill.students.job import TrainingJob
from ray_distill.students.process_group import current_ranks
from ray_distill.students.run import run_arms
from ray_distill.testing.gloo import run_gloo
from ray_distill.testing.models import write_tiny_causal_model
from ray_distill.testing.tensors import assert_equal
from tests.labs.language_store import config_of, documents, labelled, train, write_texts
from tests.labs.training import Recorder, learnt

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
        home,
        home / "texts.jsonl",
        training={"shuffle_units": 4, "epochs": 2, **training},
        unit_rows=8,
        teacher={"model": str(home / "teacher")},
        signal={"estimator": "sampled", "draws": 6},
        hidden={"layers": [-1], "pool": "token"},
    )
    return config.model_copy(
        update={
            "student": config.student.model_copy(
                update={"losses": {**config.student.losses, "hidden": type(config.student.losses["soft"])(weight=0.5)}}
            )
        }
    )


@pytest.fixture(scope="module")
def labels(home: Path) -> LabelSetRef:
    """Their labels."""
    return labelled(campaign(home))


def curve(recorder: Recorder) -> list[dict[str, float]]:
    """Every metric of every step but those of speed and memory."""
    return [learnt(recorder.curve[step]) for step in sorted(recorder.curve)]


@pytest.mark.parametrize("layout", [{}, {"packed": 64}, {"micro_tokens": 128}], ids=str)
def test_the_curve_is_that_of_memory(home: Path, labels: LabelSetRef, tmp_path: Path, layout: dict[str, int]) -> None:
    """Losses, validation and weights of every step to the bit: units are read on threads, in pieces, and dropped."""
    _, memory = train(campaign(home, **layout), labels, tmp_path / "memory")
    _, streamed = train(campaign(home, **layout, **STREAM), labels, tmp_path / "streamed")
    assert curve(streamed) == curve(memory)
    assert len(memory.curve) > 12


def test_documents_stay_in_their_units_as_far_as_these_fit(
    home: Path, labels: LabelSetRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for no, some and all units of a batch: their rows are copied, some are, none is; batches are equal."""
    config, copied = campaign(home), list[int]()
    model = load_model(str(home / "teacher"), task=config.task)
    [source] = open_sources(config, open_labels(config, (labels,)), model, layers=(), teacher_rows_url=None)
    monkeypatch.setattr(
        "ray_distill.students.data.streaming.take_rows",
        lambda data, rows: (copied.append(len(rows)), take_rows(data, rows))[1],
    )
    memory = open_data([source], config.student.training.model_copy(update={"stream": "never"}), current_ranks()).train
    rows = [np.random.default_rng(step).permutation(memory.rows)[:24] for step in range(12)]
    found = []
    for memory_gb in (1e-6, 3e-5, 1.0):
        settings = config.student.training.model_copy(update={"stream": "always", "memory_gb": memory_gb})
        streamed = open_data([source], settings, current_ranks()).train
        copied.clear()
        for step, own in enumerate(rows):
            streamed.prepare(step, rows.__getitem__, len(rows))
            for ours, theirs in zip(streamed.batch(own), memory.batch(own), strict=True):
                assert_equal(ours, theirs)
        found.append(sum(copied))
        streamed.close()
    assert found[0] == sum(map(len, rows)) and 0 < found[1] < found[0] and found[2] == 0


@pytest.mark.parametrize("how", ["source", "average"])
def test_mixtures_are_streamed_as_they_are_held(home: Path, labels: LabelSetRef, tmp_path: Path, how: str) -> None:
    """A second store of the same teacher, with labels of other texts too: each document is taught by its own labels."""
    write_texts(tmp_path / "more.jsonl", [*documents(150, 4), *documents(60, 7)])
    other = config_of(
        tmp_path,
        tmp_path / "more.jsonl",
        unit_rows=8,
        teacher={"model": str(home / "teacher")},
        signal={"estimator": "topk", "k": 48},
    )
    mixed, own = (
        labelled(other),
        config_of(
            home,
            home / "texts.jsonl",
            training={"shuffle_units": 4},
            unit_rows=8,
            store=str(tmp_path / "own"),
            teacher={"model": str(home / "teacher")},
            signal={"estimator": "topk", "k": 48},
        ),
    )
    (tmp_path / "mixed.json").write_text(mixed.to_json())
    first, curves = labelled(own), {}
    for name, stream in (("memory", {"stream": "never"}), ("streamed", STREAM)):
        student = own.student.model_copy(
            update={
                "training": own.student.training.model_copy(update=stream),
                "mixture": MixtureConfig.model_validate(
                    {"how": how, "weight": 2.0, "others": [{"labels": str(tmp_path / "mixed.json")}]}
                ),
            }
        )
        recorder = Recorder()
        run_arms(
            TrainingJob(
                config=own.model_copy(update={"student": student}),
                labels=first,
                arms=("student",),
                output=str(tmp_path / name),
                others=(mixed,),
            ),
            recorder,
        )
        curves[name] = curve(recorder)
    assert curves["streamed"] == curves["memory"] and len(curves["memory"]) > 6
    # One teacher, whose labels of other texts are as good: nearer to the student at every step than others' would be.
    plain = train(own, first, tmp_path / "plain")[1]
    assert max(step["loss_soft"] for step in curves["memory"]) < 1.5 * max(
        plain.curve[step]["loss_soft"] for step in plain.curve
    )


def _ranks(config: Campaign, labels: LabelSetRef, output: str) -> list[dict[str, float]]:
    recorder = Recorder()
    run_arms(TrainingJob(config=config, arms=("student",), output=output, labels=labels), recorder)
    return curve(recorder)


@pytest.mark.golden
def test_ranks_share_the_scan_and_the_curve(home: Path, labels: LabelSetRef, tmp_path: Path) -> None:
    """Two ranks, each reading the units of its own lanes: the curve of one in memory, within rounding."""
    _, memory = train(campaign(home), labels, tmp_path / "memory")
    for found in run_gloo(_ranks, 2, campaign(home, workers=2, **STREAM), labels, str(tmp_path / "streamed")):
        for ours, theirs in zip(found, curve(memory), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
