"""vLLM for real, in its own environment through Ray: the labels it makes are those of transformers."""

import json
from pathlib import Path

import numpy as np
import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, TeacherConfig, parse_config
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.signal import concat_signals
from ray_distill.labels.store.label_store import LabelStore, create_or_open
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.live_agreement import Answer, compare
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.forecast.forecast import choose_pieces
from ray_distill.runtime.forecast.probe import Piece, Probed, ProbeRequest, probe
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.bounded_task import run_teacher_task, teacher_facts
from ray_distill.runtime.labelling.calibrate_store import Found, with_found
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.labelling.label_units import label_units
from ray_distill.runtime.labelling.live_audit import audit_live
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.transformers_teacher import open_teacher
from ray_distill.testing.models import write_tiny_causal_model
from tests.labs.vllm import vllm_python, wrote

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

WORDS = ("the", "teacher", "reads", "what", "a", "student", "is", "to", "learn", "and", "says", "how", "likely", "next")


def _config(folder: Path) -> Campaign:
    # vLLM's CPU kernels know heads of 32 dimensions and more
    model = write_tiny_causal_model(
        folder / "model", seed=0, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_key_value_heads=1
    )
    rng, rows = np.random.default_rng(0), folder / "rows.jsonl"
    texts = [" ".join(rng.choice(WORDS, rng.integers(3, 40))) for _ in range(64)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    engine = {
        "python": str(vllm_python()),
        "gpu_memory_utilization": 0.1,
        "max_num_batched_tokens": 100,
        "max_num_seqs": 8,
    }
    config = parse_config(
        {
            "campaign": "engines",
            "task": "text_classification",
            "output": str(folder / "out"),
            "snapshot": {
                "source": str(rows),
                "columns": {"text": "text"},
                "splits": {"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1},
            },
            "labels": {
                "teacher": {"model": str(model), "engine": "vllm", "vllm": engine},
                "unit_rows": 16,
                "signal": {"estimator": "topk", "k": 32},
                "resources": {"batch": 8},
            },
            "tracking": {"enabled": False},
            "plan": {"rows": 24},
        }
    )
    # Campaigns of language models are not configurable yet; labelling them is.
    return config.model_copy(update={"task": "causal_lm"})


def _filled(config: Campaign, snapshot: SnapshotRef, facts: TeacherFacts, found: Found) -> LabelStore:
    """The campaign's label store, made as its label stage makes it."""
    manifest = make_manifest(config, facts)
    store = create_or_open(config.store_url, with_found(manifest, found, write_fits(config.store_url, found.fits)))
    job = LabelJob(
        task=config.task,
        snapshot=snapshot,
        teacher=config.labels.teacher,
        store_url=store.url,
        manifest=store.manifest,
        resources=config.labels.resources,
    )
    done = label_units(
        job, store, store.coverage(open_snapshot(snapshot)).units, max_rejected=0, progress=lambda rows: None
    )
    assert (done.rows, done.rejected, done.isolated) == (64, 0, 0)
    return store


def _live(config: Campaign, snapshot: SnapshotRef, store: LabelStore, batch: int) -> Answer:
    """What transformers says, in this process, in batches of another size."""
    teacher = TeacherConfig(model=config.labels.teacher.model)
    task, opened = get_task("causal_lm"), open_snapshot(snapshot)
    parts = [
        task.inputs.encode(opened.read_shard(shard, ["row_id", "text"]), load_processor(teacher, task="causal_lm"))
        for shard in opened.shards
    ]
    answers = [
        answer_all(open_teacher(teacher, task="causal_lm"), part, request_of(store.manifest), batch)[:2]
        for part in parts
    ]
    ids = np.concatenate([rowids.to_numpy(found) for found, _ in answers])
    order = np.argsort(ids, kind="stable").astype(np.int64)
    return Answer(ids=ids[order], signal=concat_signals([signal for _, signal in answers]).take(order))


def _probed(config: Campaign, snapshot: SnapshotRef, facts: TeacherFacts) -> Probed:
    opened = open_snapshot(snapshot)
    pieces = [
        Piece(shard=shard.name, start=0, stop=shard.rows, rows=tuple(range(shard.rows))) for shard in opened.shards
    ]
    request = ProbeRequest(
        config=config,
        snapshot=snapshot,
        facts=facts,
        manifest=make_manifest(config, facts),
        store_url=None,
        pieces=choose_pieces(pieces, 24, 0),
        units=None,
    )
    return run_teacher_task(probe, request, labels=config.labels, rows=400, what="probing the teacher")


def test_both_engines_make_the_same_labels(tmp_path: Path) -> None:
    """Facts, plan, store and audit by vLLM in its own environment; every stored distribution agrees with transformers'
    as an audit asks of a store, and within 1e-4 of total variation; entropies are not known, and not made up.
    """
    config = _config(tmp_path)
    snapshot = take_snapshot(config.snapshot, input_column="text", seed=0, url=str(tmp_path / "snapshots"))
    facts = teacher_facts(config, snapshot, None)
    assert facts.space.size == 264 and facts.describe["engine"] == "vllm 0.32.0"

    probed = _probed(config, snapshot, facts)
    assert {option.estimator for option in probed.forms.options} == {"topk"}
    assert all(np.isfinite(option.nats) for option in probed.forms.options)

    store = _filled(config, snapshot, facts, probed.found)
    assert store.manifest.teacher.engine == "vllm 0.32.0"
    audited = audit_live(config, store.url, snapshot, sample=40)
    assert audited.ok, audited

    ids, signal = open_label_set(store.ref(open_snapshot(snapshot)), open_snapshot(snapshot)).read()
    assert signal.distributions is not None and np.isnan(signal.distributions.entropy).all()
    order = np.argsort(rowids.to_numpy(ids), kind="stable").astype(np.int64)
    stored = Answer(ids=rowids.to_numpy(ids)[order], signal=signal.take(order))
    agreed = compare(stored, _live(config, snapshot, store, batch=16), _live(config, snapshot, store, batch=1))
    assert agreed.ok and agreed.rows == 64, agreed
    assert agreed.stored.largest < 1e-4, agreed


def test_what_a_teacher_writes_is_decided_by_its_prompt_and_seed(tmp_path: Path) -> None:
    """Alone or among others; equal prompts with other seeds differ; a token ends it; no text exceeds the model."""
    labels = _config(tmp_path).labels
    # on a CPU, vLLM 0.32 cannot cut a prompt whose draws have a seed
    engine = labels.teacher.vllm.model_copy(update={"max_num_batched_tokens": 2048})
    teacher = labels.teacher.model_copy(update={"vllm": engine})
    prompts = [[5, 6, 7], [9] * 40, [5, 6, 7], [20] * 120]
    many, one, ended = run_teacher_task(wrote, teacher, prompts, labels=labels, rows=4, what="writing")
    assert [len(text.tokens) for text in many] == [20, 20, 20, 8] and not any(text.ended for text in many)
    assert many[0].tokens.tolist() == one.tokens.tolist() != many[2].tokens.tolist()
    assert all((text.logp <= 0).all() and len(text.logp) == len(text.tokens) for text in many)
    assert ended.ended and ended.tokens.tolist() == one.tokens[: len(ended.tokens)].tolist()
