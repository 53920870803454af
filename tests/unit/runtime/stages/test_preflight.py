"""Settings that are refused before anything is spent."""

from pathlib import Path

import pytest

from ray_distill.config import parse_config
from ray_distill.errors import ConfigError, PromotionError
from ray_distill.runtime.stages.preflight import check, preflight, unknown_objective
from ray_distill.runtime.sweep.resolve_trials import checked_trials


@pytest.mark.parametrize(("task", "known"), [("text_classification", "macro_f1"), ("causal_lm", "perplexity")])
def test_a_limit_on_an_unknown_metric_is_refused_with_the_known_names(tmp_path: Path, task: str, known: str) -> None:
    """A misspelt metric costs nothing: without this, the gate would find it missing when all is paid for."""
    config = parse_config(
        {
            "campaign": "c",
            "task": task,
            "output": str(tmp_path / "out"),
            "snapshot": {"source": str(tmp_path / "rows.jsonl")},
            "labels": {"teacher": {"model": str(tmp_path)}},
            "gate": {"limits": {"accuracyy": {"min": 0.9}}},
        }
    )
    with pytest.raises(ConfigError, match=rf"gate\.limits\.accuracyy: {task} has no such metric; it has .*{known}"):
        check(config)


@pytest.mark.parametrize(("task", "known"), [("text_classification", "macro_f1"), ("causal_lm", "perplexity")])
def test_a_floor_of_an_unknown_metric_is_refused_with_the_known_names(tmp_path: Path, task: str, known: str) -> None:
    """The teacher's floor names metrics of the same table."""
    config = parse_config(
        {
            "campaign": "c",
            "task": task,
            "output": str(tmp_path / "out"),
            "snapshot": {"source": str(tmp_path / "rows.jsonl")},
            "labels": {"teacher": {"model": str(tmp_path)}, "check": {"limits": {"acuracy": {"min": 0.9}}}},
        }
    )
    with pytest.raises(ConfigError, match=rf"labels\.check\.limits\.acuracy: {task} has no such metric; .*{known}"):
        check(config)


@pytest.mark.parametrize(
    ("objective", "near"), [("validation_loss", ""), ("validation_nl", "; did you mean validation_nll")]
)
def test_an_objective_that_is_never_measured_is_refused_before_labelling(objective: str, near: str) -> None:
    """Also by `sweep --dry-run`, whose trials have no objective of their own."""
    config = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "snapshot": {"source": "rows.jsonl"},
            "labels": {"teacher": {"model": "m:f"}},
            "sweep": {"grid": {"seed": [1, 2]}, "objective": objective},
        }
    )
    (line,) = unknown_objective(config)
    assert line.startswith(f"sweep.objective: text_classification has no '{objective}'; it has validation_nll")
    assert near in line
    with pytest.raises(ConfigError, match=f"1 wrong field.*\n  sweep.objective: .*{objective}"):
        checked_trials(config)


def test_a_chain_that_cannot_be_continued_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    """An entry of another version would end the campaign at its last stage, when all is paid for."""
    log = tmp_path / "out" / "promotion" / "decisions" / "log"
    log.mkdir(parents=True)
    (log / "000000000000.json").write_text('{"kind": "Entry", "time": "then"}')
    config = parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(tmp_path / "out"),
            "snapshot": {"source": "rows.jsonl"},
            "labels": {"teacher": {"model": "ray_distill.testing.models:tiny_text_model"}},
        }
    )
    with pytest.raises(PromotionError, match="entry 0 is not a decision of this version.*move the folder .* away"):
        preflight(config)


@pytest.mark.parametrize("field", ["output", "labels.store"])
@pytest.mark.parametrize("url", ["https://host/out", "zip://out::/tmp/a.zip", "dir::file:///tmp/out"])
def test_an_output_without_exclusive_create_is_refused_by_its_field(tmp_path: Path, field: str, url: str) -> None:
    """The label store would refuse it after the snapshot; nothing is read or written to find that out."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    value = {
        "campaign": "c",
        "task": "text_classification",
        "output": str(tmp_path / "out"),
        "snapshot": {"source": str(tmp_path / "rows.jsonl")},
        "labels": {"teacher": {"model": str(tmp_path)}},
    }
    value |= {"output": url} if field == "output" else {}
    value["labels"] |= {"store": url} if field != "output" else {}
    with pytest.raises(ConfigError, match=rf"\n  {field}: .*cannot create a file exclusively.*use a local path or one"):
        check(parse_config(value))


def test_an_output_through_a_file_is_refused_by_its_field(tmp_path: Path) -> None:
    """A folder cannot be made below a file."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    value = {
        "campaign": "c",
        "task": "text_classification",
        "output": str(tmp_path / "rows.jsonl" / "out"),
        "snapshot": {"source": str(tmp_path / "rows.jsonl")},
        "labels": {"teacher": {"model": str(tmp_path)}},
    }
    with pytest.raises(ConfigError, match=r"output: .*rows\.jsonl is a file: name a folder"):
        check(parse_config(value))
