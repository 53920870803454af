"""A teacher that writes, through Ray: killed midway it repeats and loses nothing, and is labelled as it wrote.

A tiny language model of random weights, and prompts of which one kills or fails its process.
"""

import json
import os
import signal as signals
import string
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ray_distill import cli
from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, parse_config
from ray_distill.errors import LabelError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.store.label_store import create_or_open as create_labels
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_processor
from ray_distill.runtime import campaign
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.identify_teacher import make_manifest, prepare_teacher
from ray_distill.runtime.labelling.label_units import label_units
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.store import SequenceStore, prompt_ids
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.unit_store import read_manifest
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.authors import MODEL
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model
from tests.labs import campaign as lab
from tests.labs import drawn

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

ROWS, UNIT = 96, 4
SPLITS = {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1}
SAMPLE = {
    "method": "sample",
    "candidates": 2,
    "temperature": 0.9,
    "new_tokens": 12,
    "unit_rows": UNIT,
    "batch": 4,
    "failures": {"attempts": 2, "batch_seconds": 30},
    "max_bad_fraction": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A source of prompts, and an undisturbed run."""

    folder: Path
    source: Path

    def config(
        self,
        name: str,
        *,
        sequences: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Campaign:
        """The campaign with an output of this name; ``arguments`` are those of `tiny_author`."""
        return parse_config(
            {
                "campaign": "writing",
                "task": "causal_lm",
                "seed": 3,
                "output": str(self.folder / name),
                "snapshot": {"source": str(self.source), "splits": SPLITS},
                "sequences": SAMPLE | (sequences or {}),
                "tracking": {"enabled": False},
                "labels": {
                    "teacher": teacher or {"model": MODEL, "arguments": {"seed": 0, **arguments}},
                    "signal": {"estimator": "topk", "k": 8, "temperatures": [1, 2]},
                },
            }
        )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("writing")
    texts = [f"text number {n}" for n in range(ROWS - 1)] + ["an odd text $"]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Lab(folder=folder, source=folder / "rows.jsonl")


def _store(config: Campaign) -> SequenceStore:
    (folder,) = (Path(config.output_url) / "sequences").iterdir()
    store = SequenceStore(str(folder), read_manifest(str(folder), Generator))
    store.log.refresh()
    return store


def _whole(config: Campaign, prompts: SnapshotRef) -> None:
    """Every prompt stands in exactly one committed unit, with all its candidates or one reason."""
    store = _store(config)
    named = [entry["unit"] for record in store.log.records for entry in record["units"]]
    assert len(named) == len(set(named))
    rows = Counter(row for table in store._tables() for row in table["row_id"].to_pylist())
    wanted = {bytes(row).ljust(16, b"\0") for row in prompt_ids(open_snapshot(prompts), ("train", "validation"))}
    assert set(rows) == wanted
    assert set(rows.values()) <= {1, 2}
    table = store.read(prompt_ids(open_snapshot(prompts), ("train", "validation")))
    assert len(table) == sum(rows.values())


def test_an_author_that_is_killed_midway_repeats_and_loses_no_prompt(given: Lab) -> None:
    """SIGKILL of the process amid generating, twice: the same snapshot as undisturbed, each prompt committed once."""
    marks = given.folder / "marks"
    undisturbed = given.config("undisturbed", marks=str(marks))
    prompts = campaign.snapshot(undisturbed)
    expected = campaign.write(undisturbed, prompts)
    _whole(undisturbed, prompts)
    marks.unlink()
    config = given.config("killed", marks=str(marks))
    again = campaign.snapshot(config)
    victims: list[int] = []

    def kill() -> None:
        """Whoever has begun its 6th and, after that, its 20th batch."""
        for moment in (6, 20):
            while True:
                begun = marks.read_text().split() if marks.exists() else []
                if len(begun) >= moment:
                    break
                time.sleep(0.005)
            victims.append(int(begun[-1]))
            os.kill(int(begun[-1]), signals.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = campaign.write(config, again)
    killer.join(timeout=10)
    assert len(set(victims)) == 2
    assert again.fingerprint == prompts.fingerprint
    _whole(config, again)
    assert found.fingerprint == expected.fingerprint
    for shard in open_snapshot(found).shards:
        assert files.read_bytes(files.join(found.url, shard.name)) == files.read_bytes(
            files.join(expected.url, shard.name)
        )
    before = marks.read_text()
    (given.folder / "killed" / "state" / "write.json").unlink()
    assert campaign.write(config, again) == found
    assert len(marks.read_text().split()) == len(before.split()), "a rerun wrote again"


def test_a_command_that_is_killed_midway_writes_the_rest_when_it_is_run_again(
    given: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the driver after its first commit: the rerun generates for what is not committed, and for no more.

    The command that is killed has a process and a Ray of its own; the reruns are in this process, on the session's Ray.
    """
    marks = given.folder / "marks-of-commands"
    config = given.config("commands", marks=str(marks), sequences={"unit_rows": 1})
    path = lab.write_config(given.folder / "commands.yaml", config.model_dump(mode="json", by_alias=True))
    prompts = campaign.snapshot(config)
    first = lab.Command.start(given.folder, "write", str(path), "--json")
    first.until(lambda: any(Path(config.output_url).glob("sequences/*/log/000000000000.json")))
    first.process.kill()
    assert first.wait() == -signals.SIGKILL
    committed = {receipt.unit for receipt in _store(config).ledger.receipts()}
    left = sum(len(prompt_ids(open_snapshot(prompts), (split,))) for split in ("train", "validation")) - len(committed)
    assert committed and left > 0
    first.wait_for_all()  # its actor writes on until Ray notices
    before = len(marks.read_text().split())
    last, skipped = _write_again(path, capfd)
    assert skipped == [] and len(marks.read_text().split()) - before == left
    assert committed < {receipt.unit for receipt in _store(config).ledger.receipts()}
    _whole(config, prompts)
    assert _write_again(path, capfd) == (last, ["write"])


def _write_again(path: Path, capfd: pytest.CaptureFixture[str]) -> tuple[Any, list[str]]:
    """Run the command in this process; return its result, and the stages that it skipped."""
    capfd.readouterr()
    assert cli.main(["write", str(path), "--json"]) == 0
    written = capfd.readouterr()
    events = lab.events_of(written.err)
    return json.loads(written.out.splitlines()[-1]), [event["skipped"] for event in events if "skipped" in event]


def test_a_prompt_that_kills_its_author_goes_to_quarantine_and_is_told(
    given: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    """The others of its unit are written; too many such prompts stop the run with the reason."""
    config = given.config("dies", fault="$", sequences={"splits": list(SPLITS)})
    prompts = campaign.snapshot(config)
    found = open_snapshot(campaign.write(config, prompts))
    assert found.manifest.derived is not None
    assert found.manifest.derived["counts"]["quarantined"] == {"the teacher's process died on this row": 1}
    assert found.manifest.derived["counts"]["sequences"] == 2 * (ROWS - 1)
    assert "1 prompts went to quarantine: the teacher's process died on this row" in capfd.readouterr().err
    once = {"splits": list(SPLITS), "max_bad_fraction": 0.0, "failures": {"attempts": 1, "batch_seconds": 30}}
    strict = given.config("strict", fault="$", sequences=once)
    with pytest.raises(
        LabelError,
        match="1 of .* prompts so far got no answer, more than the 0 that "
        "sequences.max_bad_fraction allows: 1 × the teacher's process died",
    ):
        campaign.write(strict, prompts)


@pytest.mark.parametrize("form", drawn.one_of("text", "chat"))
def test_labelling_what_was_written_stores_the_generating_distribution(given: Lab, form: str) -> None:
    """At each token that was written greedily the likeliest that is stored; together, the log-probability recorded."""
    folder = given.folder / f"greedy-{form}"
    model = _ascii_model(folder / "model")
    rows = [
        {
            "text": f"number {n}"
            if form == "text"
            else [{"role": "user", "content": f"number {n}"}, {"role": "assistant", "content": "its own"}]
        }
        for n in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Lab(folder=folder, source=folder / "rows.jsonl").config(
        "out",
        teacher={"model": str(model), "language": {"format": form}},
        sequences={"method": "greedy", "candidates": 1, "temperature": 1.0},
    )
    written = campaign.write(config, campaign.snapshot(config))
    opened, signal = open_snapshot(written), _labelled(config, written)
    answers = {row["row_id"]: row for table in _store(config)._tables() for row in table.to_pylist()}
    rows_written = opened.read("train", columns=["row_id", "text", "sequence_parent"])
    encoded = get_task("causal_lm").inputs.encode(rows_written, load_processor(config.labels.teacher, task="causal_lm"))
    parents = dict(zip(rows_written["row_id"].to_pylist(), rows_written["sequence_parent"].to_pylist(), strict=True))
    tokens = encoded.features["input_ids"]
    for at, row_id in enumerate(encoded.row_ids.to_pylist()):
        answer, part = answers[parents[row_id]], signal[row_id]
        assert answer["same_tokens"] and answer["tokens"] == 12
        ids = tokens.values[tokens.offsets[at] : tokens.offsets[at + 1]]
        # Of a text every token is learnt; of a conversation what the assistant wrote, and the end of its turn.
        wrote = range(len(part.position))[-12:] if form == "text" else range(12)
        total = 0.0
        for place in wrote:
            own = slice(int(part.entry_offsets[place]), int(part.entry_offsets[place + 1]))
            assert own.stop - own.start == 8
            best = int(np.argmax(part.logp[own]))
            assert part.ids[own][best] == ids[part.position[place] + 1]
            total += float(part.logp[own][best])
        assert total == pytest.approx(answer["log_probability"], abs=1e-3)


def _ascii_model(folder: Path) -> Path:
    """A language model that writes letters alone, so that what it writes reads back as the tokens it wrote."""
    write_tiny_causal_model(folder, seed=0)
    path, tokenizer = folder / "model.safetensors", tiny_causal_tokenizer()
    letters = tokenizer.convert_tokens_to_ids(list(string.ascii_letters))
    weights = load_file(path)
    others = np.setdiff1d(np.arange(len(weights["lm_head.weight"])), letters)
    weights["lm_head.weight"][others] = 0
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def _labelled(config: Campaign, written: SnapshotRef) -> dict[bytes, Distributions]:
    """What the same teacher's labels of the snapshot are, by row."""
    manifest = make_manifest(config, prepare_teacher(config, written, None))
    store = create_labels(config.store_url, manifest)
    job = LabelJob(
        task="causal_lm",
        snapshot=written,
        teacher=config.labels.teacher,
        store_url=config.store_url,
        manifest=manifest,
        resources=config.labels.resources,
    )
    label_units(job, store, store.coverage(open_snapshot(written)).units, max_rejected=0, progress=lambda _: None)
    ids, signal = open_label_set(store.ref(open_snapshot(written))).read()
    assert signal.distributions is not None and signal.distributions.temperatures == (1.0, 2.0)
    return {row_id: signal.distributions.take(np.array([at])) for at, row_id in enumerate(ids.to_pylist())}
