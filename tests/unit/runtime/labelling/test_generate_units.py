"""The writing stage without a cluster: what is refused before the teacher is paid for, planned, and handed on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.cli import resolve_references
from ray_distill.config import Campaign, parse_config
from ray_distill.errors import ConfigError, SnapshotError
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime import campaign, dry_run
from ray_distill.runtime.core.failures import Failure, answer_halving
from ray_distill.runtime.core.session import parent_key
from ray_distill.runtime.labelling.actors import GenerateActor, WriteJob
from ray_distill.runtime.labelling.batching import try_answer
from ray_distill.runtime.labelling.generate_units import derive_snapshot, make_generator
from ray_distill.runtime.labelling.isolate_failures import FailedUnit
from ray_distill.runtime.stages.preflight import check
from ray_distill.sequences.attempts import rejected_table
from ray_distill.sequences.store import SequenceStore, create_or_open, prompt_ids
from ray_distill.sequences.units import WriteReceipt, write_attempt
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.testing.models import write_tiny_causal_model
from ray_distill.testing.sequences import fake_generator, prompts_snapshot, write_all

AUTHOR = "ray_distill.testing.authors:tiny_author"


def _config(folder: Path, sequences: dict[str, Any] | None, **sections: Any) -> Campaign:
    (folder / "rows.jsonl").write_text('{"text": "one"}\n')
    return parse_config(
        {
            "campaign": "c",
            "task": "causal_lm",
            "output": str(folder / "out"),
            "seed": 5,
            "snapshot": {"source": str(folder / "rows.jsonl")},
            "labels": {"teacher": {"model": AUTHOR, "arguments": {"seed": 0}}},
            "student": {"model": {"from": "module", "model": AUTHOR, "arguments": {"seed": 1}}},
            "sequences": sequences,
            **sections,
        }
    )


def test_a_plan_says_what_will_be_written(tmp_path: Path) -> None:
    """Between snapshot and label; nothing where the teacher writes nothing."""
    lines = dry_run.plan(_config(tmp_path, {"method": "sample", "candidates": 4, "keep": "best"}))
    assert [line.split()[0] for line in lines][:3] == ["snapshot", "write", "label"]
    assert "sample, 4 for a prompt of train and validation, up to 256 tokens, keep best" in lines[1]
    assert "write" not in [line.split()[0] for line in dry_run.plan(_config(tmp_path, None))]


def test_a_scorer_that_cannot_be_imported_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """With the reason."""
    config = _config(tmp_path, {"filters": {"scorer": "nowhere.at_all:judge"}})
    with pytest.raises(ConfigError, match="sequences.filters.scorer: cannot import nowhere.at_all:judge"):
        check(config)


def test_a_campaign_that_writes_nothing_has_no_writing_stage(tmp_path: Path) -> None:
    """The command says what to put into the config."""
    config = _config(tmp_path, None, tracking={"enabled": False})
    with pytest.raises(ConfigError, match="has no section sequences: configure there how the teacher writes"):
        campaign.write(config, SnapshotRef(url="nowhere", fingerprint="f"))


def test_what_is_labelled_is_what_was_written(tmp_path: Path) -> None:
    """`label` takes the written snapshot and `write` the frozen one, each from its own stage."""
    state = tmp_path / "out" / "state"
    state.mkdir(parents=True)
    for stage in ("snapshot", "write"):
        ref = SnapshotRef(url=f"s3://{stage}", fingerprint=stage)
        (state / f"{stage}.json").write_text(json.dumps({"key": "k", "result": ref.to_dict()}))
    assert resolve_references.snapshot(_config(tmp_path, {}), None).fingerprint == "write"
    assert resolve_references.snapshot(_config(tmp_path, None), None).fingerprint == "snapshot"
    assert resolve_references.prompts(_config(tmp_path, {}), None).fingerprint == "snapshot"
    (state / "write.json").unlink()
    with pytest.raises(ConfigError, match="has no result of `write` yet"):
        resolve_references.snapshot(_config(tmp_path, {}), None)


def test_how_failures_are_met_makes_no_other_campaign(tmp_path: Path) -> None:
    """Its runs in the tracker stay together; other decoding is another campaign."""
    key = parent_key(_config(tmp_path, {}))
    assert parent_key(_config(tmp_path, {"failures": {"attempts": 7}})) == key
    assert parent_key(_config(tmp_path, {"new_tokens": 7})) != key
    assert parent_key(_config(tmp_path, None)) != key


def test_the_generator_is_what_decides_the_texts(tmp_path: Path) -> None:
    """Decoding, seed where something is drawn, batch and threads; not filters, splits or the place of the model."""

    def of(**sequences: Any) -> str:
        config = _config(tmp_path, {"new_tokens": 9, **sequences})
        assert config.sequences is not None
        return make_generator(config, config.sequences).fingerprint

    greedy, sample = of(), of(method="sample")
    assert of(filters={"ended": True}, splits=["train"], unit_rows=3, max_bad_fraction=0.5) == greedy
    others = [of(batch=3), of(method="sample", temperature=2.0), of(method="beam", beams=2), sample, greedy]
    assert len(set(others)) == len(others)
    config = _config(tmp_path, {"new_tokens": 9})
    assert config.sequences is not None
    assert make_generator(config.model_copy(update={"seed": 6}), config.sequences).fingerprint == greedy
    assert len({fake_generator(own=own).fingerprint for own in ("", "a", "b")}) == 3


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> WriteJob:
    """A job whose second prompt is too long, and a model folder of its own."""
    folder = tmp_path_factory.mktemp("job")
    model = write_tiny_causal_model(folder / "model", seed=0)
    parent = prompts_snapshot(folder, [*(f"text {n}" for n in range(60)), *("long " * 30 + str(n) for n in range(30))])
    config = parse_config(
        {
            "campaign": "c",
            "task": "causal_lm",
            "snapshot": {"source": "s"},
            "labels": {"teacher": {"model": str(model)}},
            "sequences": {"method": "sample", "candidates": 2, "new_tokens": 6, "batch": 8},
        }
    )
    assert config.sequences is not None
    generator = make_generator(config, config.sequences)
    create_or_open(str(folder / "store"), generator)
    return WriteJob(
        snapshot=parent.ref,
        task="causal_lm",
        teacher=config.labels.teacher,
        settings=config.sequences,
        generator=generator,
        store_url=str(folder / "store"),
        resources=config.labels.resources,
    )


class _Alone(GenerateActor):
    """An actor outside of Ray: nobody counts its deaths."""

    def receipt(self, unit: WorkUnit) -> WriteReceipt:
        """Return the receipt of one unit, written."""
        block = pa.table({"unit_id": [unit.unit_id], "work": [json.dumps(unit.to_dict())]})
        found = self.answer_block(unit.unit_id, block)
        assert found["unit_id"].to_pylist() == [unit.unit_id]
        return WriteReceipt.from_dict(json.loads(found["receipt"][0].as_py()))


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _units(job: WriteJob) -> tuple[Snapshot, SequenceStore, tuple[WorkUnit, ...]]:
    store, parent = create_or_open(job.store_url, job.generator), open_snapshot(job.snapshot)
    return parent, store, store.coverage(parent, job.settings.splits, 16).units


def test_actors_write_units_and_an_isolated_one_writes_the_same(job: WriteJob, threads: None) -> None:
    """Receipts that can be committed; batch by batch in isolation the file has the same bytes."""
    parent, store, units = _units(job)
    actor, isolated = _Alone(job), GenerateActor(job)
    isolated.ready()
    receipts = [actor.receipt(unit) for unit in units]
    for unit, receipt in zip(units, receipts, strict=True):
        one = FailedUnit(unit=unit, reason="")
        plan = isolated.plan(one.text)
        answers = answer_halving(plan.batches, lambda rows, text=one.text: isolated.answer(text, rows))
        parts = [*answers.parts, rejected_table(plan.rejected)]
        again = write_attempt(job.store_url, job.generator, unit, pa.concat_tables(parts))
        assert again == receipt.with_changes(attempt=again.attempt)
        assert {row for row, _ in plan.rejected}.isdisjoint(plan.row_ids)
        assert len(plan.row_ids) + len(plan.rejected) == len(unit.rows)
    store.commit(receipts)
    table = store.read(prompt_ids(parent, job.settings.splits))
    reasons = set(table["reason"].drop_null().to_pylist())
    assert reasons == {"prompt too long: with sequences.new_tokens = 6 the teacher reads 122 tokens of it"}
    derived = derive_snapshot(
        job.snapshot,
        job.store_url,
        job.generator,
        job.settings,
        url=str(Path(job.store_url).parent / "snapshots"),
        shard_rows=64,
    )
    assert derived.counts["sequences"] == 2 * sum(receipt.rows for receipt in receipts)


def test_a_batch_that_does_not_fit_into_memory_is_written_in_halves(
    job: WriteJob, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    """The same texts, and a mark in the receipt."""
    actor, (parent, _, _) = _Alone(job), _units(job)
    unit = (
        create_or_open(str(Path(job.store_url).parent / "halves"), job.generator)
        .coverage(parent, ("train",), 16)
        .units[0]
    )
    whole = actor.receipt(unit)
    write = type(actor.author).write

    def fits_two(self: Any, prompts: Any, rows: Any) -> pa.Table:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory (pretended)")
        return write(self, prompts, rows)

    monkeypatch.setattr(type(actor.author), "write", fits_two)
    halved = actor.receipt(unit)
    assert (whole.halved, halved.halved) == (0, 2)
    assert (halved.sequences, halved.tokens) == (whole.sequences, whole.tokens)


def test_only_memory_is_forgiven_and_only_to_several_rows() -> None:
    """Any other error, and that of a row alone, goes on."""

    def raising(error: Exception) -> Any:
        def answer() -> None:
            raise error

        return answer

    assert isinstance(try_answer(raising(MemoryError()), 2), Failure)
    for error, rows in ((MemoryError(), 1), (ValueError("x"), 2)):
        with pytest.raises(type(error)):
            try_answer(raising(error), rows)
    assert try_answer(lambda: 3, 1) == 3
    for error, rows in ((MemoryError(), 1), (ValueError("x"), 2)):
        assert isinstance(try_answer(raising(error), rows, isolated=True), Failure)
    with pytest.raises(ConfigError):
        try_answer(raising(ConfigError("ours")), 2, isolated=True)


def best_of(table: pa.Table) -> list[float]:
    """A scorer for the test below: the row's own number."""
    return [float(text.split()[1]) for text in table["input"].to_pylist()]


def test_a_scorer_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it returns stands beside each row, and a bar that all miss is an error with the counts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    parent = prompts_snapshot(tmp_path, [f"row {n}" for n in range(60)])
    store = write_all(str(tmp_path / "w"), fake_generator(), parent)
    config = _config(
        tmp_path,
        {"method": "sample", "candidates": 2, "filters": {"scorer": "test_generate_units:best_of", "min_score": 5}},
    )
    assert config.sequences is not None
    derived = derive_snapshot(
        parent.ref, store.url, store.manifest, config.sequences, url=str(tmp_path / "s"), shard_rows=64
    )
    assert 0 < derived.counts["dropped"]["low score"] <= 10
    high = config.sequences.filters.model_copy(update={"min_score": 99})
    with pytest.raises(SnapshotError, match="the derived split train, validation is empty: .* low score"):
        derive_snapshot(
            parent.ref,
            store.url,
            store.manifest,
            config.sequences.model_copy(update={"filters": high}),
            url=str(tmp_path / "s"),
            shard_rows=64,
        )
    assert np.isfinite(derived.counts["kept"])
