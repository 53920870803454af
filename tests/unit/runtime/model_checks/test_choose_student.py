"""A student of a size or a latency is the campaign of the model that is chosen, before anything else is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_distill.artifacts import Efficiency
from ray_distill.config import Campaign, parse_config
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError, DamagedFile, ModelError
from ray_distill.models.students.size import SizedStudent
from ray_distill.runtime.core.session import parent_key
from ray_distill.runtime.dry_run import plan
from ray_distill.runtime.model_checks import choose_student
from ray_distill.runtime.model_checks.choose_student import describe_student, sized
from ray_distill.testing.models import write_tiny_text_model

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of six layers."""
    return write_tiny_text_model(
        tmp_path_factory.mktemp("t") / "t", CLASSES, 0, num_hidden_layers=6, num_attention_heads=4
    )


def _config(folder: Path, teacher: Path | str, student: dict[str, Any], **sections: Any) -> Campaign:
    (folder / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder / "out"),
            "snapshot": {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}},
            "labels": {"teacher": {"model": str(teacher)}},
            "student": {"losses": {"soft": {}}, "training": {"engine": "torch"}, **student},
            "tracking": {"enabled": False},
            **sections,
        }
    )


def test_a_size_is_the_campaign_of_its_model(tmp_path: Path, teacher: Path) -> None:
    """With the same keys, so that either reuses what the other one made; a repeat is the same, and changes nothing."""
    found = sized(_config(tmp_path, teacher, {"size": 0.6, "model": {"max_length": 16}}))
    by_hand = _config(tmp_path, teacher, {"model": {"from": "teacher_layers", "keep": 3, "max_length": 16}})
    assert identity(found) == identity(by_hand) and parent_key(found) == parent_key(by_hand)
    assert found.student.size is None and sized(found) is found and sized(by_hand) is by_hand
    assert found.student.model.chosen_by is not None and "3 of 6 layers" in found.student.model.chosen_by
    assert "model" in found.student.model_fields_set  # `label` and `plan` check a student that is given


def test_a_dry_run_states_every_students_parameters(tmp_path: Path, teacher: Path) -> None:
    """Of a size with its share, of others plainly; nothing is written."""
    whole = {"from": "teacher_layers", "keep": 6}
    lines = plan(_config(tmp_path, teacher, {"size": 0.6}))
    (line,) = [one for one in lines if one.startswith("student ")]
    count = int(line.rpartition(": ")[2].partition(" ")[0].replace(",", ""))
    assert line.startswith("student   size 0.6: from teacher_layers, 3 of 6 layers: ")
    everything = int(describe_student(_config(tmp_path, teacher, {"model": whole})).split()[-2].replace(",", ""))
    assert f"{count:,} of {everything:,} parameters ({count / everything:.4f})" in line
    half = describe_student(_config(tmp_path, teacher, {"model": {"from": "teacher_layers", "keep": 3}}))
    assert half == f"from teacher_layers: {count:,} parameters"
    kept = describe_student(_config(tmp_path, teacher, {"model": {**whole, "vocabulary": {"keep": 0.9}}}))
    assert kept == f"from teacher_layers: at most {everything:,} parameters"
    saved = describe_student(_config(tmp_path, teacher, {"model": {"from": "checkpoint", "model": str(teacher)}}))
    assert saved == f"from checkpoint {teacher}: {everything:,} parameters"
    function = {"from": "module", "model": "ray_distill.testing.models:tiny_text_model"}
    assert "parameters" in describe_student(_config(tmp_path, teacher, {"model": function}))
    assert not (tmp_path / "out").exists()


def test_a_latency_is_measured_once_and_kept(tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest student within it; later commands read it, however fast the machine is then, till it is deleted."""
    times = {6: 6.0, 5: 5.0, 4: 4.0, 3: 3.0, 2: 2.0}

    def timed(_: object, chosen: SizedStudent, device: str) -> Efficiency:
        taken = times[chosen.model.keep or 0]
        spread = 0.5 if taken > 4 else 0.0
        return Efficiency(
            parameters=1,
            bytes_on_disk=1,
            latency_ms_p50=taken,
            latency_ms_p95=taken,
            examples_per_second=1,
            latency_spread=spread,
        )

    monkeypatch.setattr(choose_student, "_timed", timed)
    config = _config(tmp_path, teacher, {"latency_ms": 4.5})
    found = sized(config)
    assert (found.student.model.keep, found.student.latency_ms) == (4, None)
    assert str(found.student.model.chosen_by).endswith("4 ms on 1 thread(s) of a busy machine")
    times = dict.fromkeys(times, 9.0)
    assert sized(config) == found
    assert sized(_config(tmp_path, teacher, {"latency_ms": 20})).student.model.keep == 5
    (kept,) = [
        path for path in (tmp_path / "out" / "state").iterdir() if json.loads(path.read_text())["model"]["keep"] == 4
    ]
    kept.write_text("{")
    with pytest.raises(DamagedFile, match="delete it, and the student is chosen again"):
        sized(config)
    kept.unlink()
    with pytest.raises(
        ConfigError, match=r"student\.latency_ms is 4\.5, and the smallest .* 9 ms here: set it to more"
    ):
        sized(config)


def test_a_latency_is_that_of_the_longest_text(tmp_path: Path, teacher: Path) -> None:
    """It is measured as evaluation does, on as many threads, and grows with what there is to compute."""
    config = _config(tmp_path, teacher, {"latency_ms": 1e5})
    model = sized(config).student.model
    assert model.keep == 5 and 0 < float(str(model.chosen_by).split(", ")[-1].split()[0]) < 1e4


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"size": 0.5, "latency_ms": 3}, "size and latency_ms both choose the student's shape: give one of them"),
        ({"size": 0.5, "model": {"from": "teacher_layers", "keep": 2}}, "size chooses .*model.from sets it too"),
        (
            {"latency_ms": 3, "model": {"vocabulary": {"tokens": 9}}},
            "latency_ms chooses .*model.vocabulary sets it too",
        ),
        ({"size": 1}, "less than 1"),
        ({"size": 0}, "greater than 0"),
    ],
)
def test_another_shape_beside_it_is_refused(tmp_path: Path, student: dict[str, Any], message: str) -> None:
    """By the configuration alone."""
    with pytest.raises(ConfigError, match=message):
        _config(tmp_path, "unused", student)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ray_distill.testing.models:tiny_text_model", r"student\.size: the teacher .* is a function"),
        ("no/such/folder", "there is no checkpoint folder no/such/folder"),
    ],
)
def test_a_teacher_that_cannot_be_made_smaller_is_refused(tmp_path: Path, model: str, message: str) -> None:
    """Before anything is run or written."""
    with pytest.raises((ConfigError, ModelError), match=message):
        sized(_config(tmp_path, model, {"size": 0.5}))
    assert not (tmp_path / "out").exists()


def test_gpus_that_the_machine_lacks_are_refused_for_a_latency(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What evaluation would measure cannot be measured here."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = _config(
        tmp_path, teacher, {"latency_ms": 3}, labels={"teacher": {"model": str(teacher)}, "resources": {"gpus": 1}}
    )
    with pytest.raises(ConfigError, match=r"student\.latency_ms is measured .*set student\.size instead"):
        sized(config)
