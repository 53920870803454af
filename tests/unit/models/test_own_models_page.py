"""The page about models of one's own: its example, as it stands there, passes a dry run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill import cli
from ray_distill.testing.models import tiny_tokenizer

PAGE = Path(__file__).parents[3] / "ray_distill" / "models" / "README.md"


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_of_the_page_passes_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both functions are called, run on a made-up row, and the student takes a training step."""
    (tmp_path / "my_models.py").write_text(_block("python"))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "label": "ham"}\n')
    sections: dict[str, Any] = yaml.safe_load(_block("yaml").replace("/models/tokenizer", str(tmp_path / "tokenizer")))
    sections["labels"]["hidden"] = {"layers": [0]}
    value = {
        "campaign": "own",
        "task": "text_classification",
        "output": str(tmp_path / "out"),
        "snapshot": {"source": str(tmp_path / "rows.jsonl"), "columns": {"label": "label"}},
        **sections,
    }
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(value))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["run", str(tmp_path / "campaign.yaml"), "--dry-run"]) == 0
    assert "my_models:teacher" in capsys.readouterr().out
    value["student"]["model"]["arguments"] = {}
    (tmp_path / "campaign.yaml").write_text(yaml.safe_dump(value))
    assert cli.main(["run", str(tmp_path / "campaign.yaml"), "--dry-run"]) == 1
    assert "student.model: my_models:student" in capsys.readouterr().err
