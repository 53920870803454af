"""A sequence-to-sequence campaign from a YAML file to the judgement; and again, with nothing left to do."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ray_distill.artifacts import EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.runtime import campaign
from ray_distill.runtime.stages.preflight import check
from ray_distill.snapshots.pairs import read_pair
from ray_distill.snapshots.reader import open_snapshot
from tests.labs import campaign as campaign_lab
from tests.labs import pairs as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

ROWS, UNWRITTEN = 300, 2


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A campaign up to its judgement, and the same again."""

    config: Campaign
    snapshot: SnapshotRef
    labels: LabelSetRef
    students: dict[str, StudentRef]
    report: EvalReport
    again: LabelSetRef


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("pairs")
    teacher = lab.write_teacher(folder / "teacher")
    rows = [*lab.pairs(ROWS, seed=3), *((f"unwritten {number}", None) for number in range(UNWRITTEN))]
    source = lab.write_pairs(folder / "rows.jsonl", rows)
    config = campaign_lab.load(
        folder / "campaign.yaml",
        lab.config_of(
            folder,
            source,
            teacher,
            labels__hidden={"layers": [-1], "pool": "token"},
            evaluation__written=20,
            evaluation__overlap=True,
            evaluation__corruptions=["typos"],
            evaluation__severities=[2],
            student__losses={
                "soft": {"weight": 0.8},
                "hard": {"weight": 0.1},
                "hidden": {"weight": 0.1, "layers": "last"},
            },
        ),
    )
    check(config)
    frozen = campaign.snapshot(config)
    labels = campaign.label(config, frozen)
    students = campaign.train(config, labels)
    return Ran(
        config=config,
        snapshot=frozen,
        labels=labels,
        students=students,
        report=campaign.evaluate(config, students),
        again=campaign.label(config, frozen),
    )


def test_labels_are_at_the_targets_tokens(ran: Ran) -> None:
    """One distribution and one state a token, the end included; rows without a target are in quarantine."""
    labels, opened = open_label_set(ran.labels), open_snapshot(ran.snapshot)
    assert labels.rows == ROWS and ran.again == ran.labels
    texts = {row["row_id"]: row["text"] for shard in opened.shards for row in opened.read_shard(shard).to_pylist()}
    ids, signal = labels.read(layers=tuple(labels.manifest.hidden))
    found = signal.distributions
    assert found is not None and found.classes == 264
    lengths = [len((read_pair(texts[row]).target or "").encode()) + 1 for row in ids.to_pylist()]
    assert np.diff(found.row_offsets).tolist() == lengths
    assert found.position.tolist() == [place for length in lengths for place in range(length)]
    assert all(hidden.offsets.tolist() == found.row_offsets.tolist() for hidden in signal.hidden.values())


def test_students_are_plain_encoder_decoders_of_their_teachers_tokens(ran: Ran) -> None:
    """Of one layer each, as the config says, and reading what the teacher reads."""
    model = load_model(ran.students["student"].url, task="seq2seq")
    teacher = load_model(ran.config.labels.teacher, task="seq2seq")
    assert model.describe["architecture"] == "T5ForConditionalGeneration"
    assert model.processor.fingerprint == teacher.processor.fingerprint
    assert (model.module.config.num_layers, model.module.config.num_decoder_layers) == (1, 1)


def test_the_report_has_likelihoods_texts_and_robustness(ran: Ran) -> None:
    """Of all arms; the teacher has learnt something, and the student is nearer to it than its baselines."""
    assert set(ran.report.models) == {"teacher", "student", "baseline_hard_labels", "baseline_teacher_hard_labels"}
    for model in ran.report.models.values():
        assert {"nll", "accuracy", "kl_from_teacher", "exact_match", "word_error_rate", "chrf", "rouge_l"} <= set(
            model.metrics
        )
    metrics = {arm: model.metrics for arm, model in ran.report.models.items()}
    assert metrics["teacher"]["perplexity"].value < 10
    distance = {arm: found["kl_from_teacher"].value for arm, found in metrics.items()}
    assert distance["student"] == min(value for arm, value in distance.items() if arm != "teacher")
    assert set(ran.report.models["student"].robustness["typos"]["2"]) == {"nll", "kl_from_teacher"}
    assert ran.report.models["student"].metrics["exact_match"].n == 20
    json.dumps(ran.report.to_dict())


def test_a_teacher_writes_the_targets_that_its_student_learns(tmp_path: Path) -> None:
    """Of sources with a reference and without; the rows of calibration and test stay; a rerun writes nothing."""
    rows = [*lab.pairs(120, seed=3), *((f"{source}h", None) for source, _ in lab.pairs(20, seed=4))]
    config = campaign_lab.load(
        tmp_path / "campaign.yaml",
        lab.config_of(
            tmp_path,
            lab.write_pairs(tmp_path / "rows.jsonl", rows),
            lab.write_teacher(tmp_path / "teacher", steps=30),
            sequences={
                "method": "sample",
                "candidates": 2,
                "temperature": 0.7,
                "keep": "best",
                "new_tokens": 20,
                "batch": 16,
            },
            labels__max_bad_fraction=0.1,
            student__training__epochs=1,
        ),
    )
    check(config)
    frozen = campaign.snapshot(config)
    written = campaign.write(config, frozen)
    assert campaign.write(config, frozen) == written
    labels = campaign.label(config, written)
    students = campaign.train(config, labels)
    before, after = open_snapshot(frozen), open_snapshot(written)
    parents = {
        row["row_id"]: row["text"] for split in ("train", "validation") for row in before.read(split).to_pylist()
    }
    derived = [row for split in ("train", "validation") for row in after.read(split).to_pylist()]
    assert {row["sequence_parent"] for row in derived} == set(parents)
    assert any(read_pair(text).target is None for text in parents.values())
    for row in derived:
        pair = read_pair(row["text"])
        assert pair.target and pair.source == read_pair(parents[row["sequence_parent"]]).source
    kept = [row["text"] for split in ("calibration", "test") for row in after.read(split).to_pylist()]
    assert open_label_set(labels).rows == len(derived) + sum(read_pair(text).target is not None for text in kept)
    assert load_model(students["student"].url, task="seq2seq").module.config.num_layers == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"sequences": {"new_tokens": 9}, "labels__teacher__language": {"target_length": 8}},
            "sequences.new_tokens is 9, more than the 8 tokens of a target",
        ),
        ({"snapshot__columns": {"text": "article"}}, "snapshot.columns.target: seq2seq needs the column"),
        ({"student__training__packed": 128}, "student.training.packed: an encoder reads one source a row"),
        ({"labels__teacher__language": {"format": "chat"}}, "texts, not a conversation"),
        ({"task": "causal_lm"}, "snapshot.columns.target: causal_lm writes no targets"),
        (
            {"task": "causal_lm", "snapshot__columns": {}, "labels__teacher__language": {"prefix": "p"}},
            "labels.teacher.language.prefix: causal_lm has no sources and targets",
        ),
        ({"evaluation__corruptions": ["blur"]}, "seq2seq has no 'blur'; it has case, dropout, typos"),
    ],
)
def test_settings_of_another_kind_are_refused_before_the_start(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    """By name, and with what to do."""
    config = lab.config_of(tmp_path, tmp_path / "rows.jsonl", tmp_path)
    config["labels"]["teacher"]["language"] = {}
    for name, change in changes.items():
        *parents, last = name.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = change
    with pytest.raises(ConfigError, match=why):
        check(parse_config(config))
