"""The loss curve is a function of seed, data and global batch: not of engine, ranks, micro-batches or crashes.

Tolerance 1e-5 relative in float32 throughout: summing in another order moves the last bits.
"""

import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch._dynamo.utils import counters

from ray_distill.config import TrainingConfig
from ray_distill.errors import ClusterError, ConfigError, TrainingError
from ray_distill.students.engines.engine import check_compiler
from ray_distill.students.loop import train_loop
from ray_distill.students.loop.train_loop import train_run
from ray_distill.students.process_group import current_ranks
from ray_distill.students.telemetry.step_timer import PARTS, StepMeter
from ray_distill.testing.gloo import run_gloo
from tests.labs import training as lab
from tests.labs.training import Lab, assert_same_curve, loss_curve

#: The first run's losses; a change of them is a change of what training means, and must be explained.
GOLDEN = (1.508476, 2.085061, 1.615413, 1.983031, 1.421013, 2.136827, 1.581483, 1.6069)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the student's checkpoint."""
    folder = tmp_path_factory.mktemp("lab")
    lab.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def reference(home: Path) -> lab.Ran:
    """Plain torch, one process, micro-batches of 3, with hidden matching."""
    return lab.run(Lab(folder=str(home), hidden=True))


def test_golden_curve(reference: lab.Ran) -> None:
    """The losses of this commit's ancestors, step by step."""
    assert loss_curve(reference) == pytest.approx(GOLDEN, rel=1e-4)


def test_every_term_is_reported(reference: lab.Ran) -> None:
    """Total, each term, rate and speed at each step; validation and memory where they are due."""
    always = {
        "loss",
        "loss_soft",
        "loss_hard",
        "loss_hidden",
        "learning_rate",
        "examples_per_second",
        "tokens_per_second",
        "data_wait",
        "seconds_step",
        *(f"seconds_{part}" for part in PARTS),
    }
    assert set(reference.curve[1]) == always
    assert set(reference.curve[4]) == always | {
        "validation_nll",
        "validation_accuracy",
        "epoch",
        "peak_memory_gib_rank_0",
    }
    terms = reference.curve[1]
    total = 0.7 * terms["loss_soft"] + 0.3 * terms["loss_hard"] + 0.5 * terms["loss_hidden"]
    assert terms["loss"] == pytest.approx(total, rel=1e-6)


def test_projections_stay_behind(reference: lab.Ran) -> None:
    """The weights kept for export are the student's alone."""
    assert reference.weights and not any("projection" in name for name in reference.weights)


@pytest.mark.parametrize(
    "training",
    [
        {"micro_batch": 1},
        {"micro_batch": 5},
        {"micro_batch": 12},
        {"micro_tokens": 20},
        {"micro_tokens": 40, "micro_batch": 3},
    ],
    ids=str,
)
def test_micro_batches_do_not_matter(home: Path, reference: lab.Ran, training: dict[str, Any]) -> None:
    """Equal global batch, any division of it, by rows or by tokens."""
    assert_same_curve(lab.run(Lab(folder=str(home), hidden=True, training=training)), reference)


@pytest.mark.golden
@pytest.mark.parametrize("engine", [{"engine": "torch"}, {"engine": "deepspeed", "zero_stage": 2}], ids=str)
def test_a_compiled_student_learns_the_same(
    home: Path, reference: lab.Ran, engine: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and put together again by torch.compile, with batches of many sizes: weights keep their names. On a device
    whose peak is known the first step's FLOPs are counted, and it is compiled all the same."""
    meter = StepMeter(peak=1e9, compiled=True)
    monkeypatch.setattr(StepMeter, "of", lambda *_: meter)
    torch._dynamo.reset()
    counters.clear()
    compiled = lab.run(Lab(folder=str(home), hidden=True, training={**engine, "compile": "aot_eager"}))
    assert_same_curve(compiled, reference)
    assert set(compiled.weights) == set(reference.weights)
    assert counters["stats"]["unique_graphs"] > 0 and compiled.curve[8]["mfu"] > 0


def test_an_unknown_compiler_is_refused() -> None:
    """By the names of those that torch has; and ZeRO 3, which leaves nothing to compile."""
    (wrong,) = check_compiler(TrainingConfig(compile="inductr"))
    assert re.search("torch has no backend 'inductr'; it has .*inductor", wrong)
    assert check_compiler(TrainingConfig()) == check_compiler(TrainingConfig(compile="inductor")) == []
    with pytest.raises(ValueError, match="compile goes with zero_stage 0 to 2"):
        TrainingConfig(compile="inductor", engine="deepspeed", zero_stage=3)


TORCH: dict[str, Any] = {"engine": "torch"}
#: By stage.
ZERO: dict[int, dict[str, Any]] = {stage: {"engine": "deepspeed", "zero_stage": stage} for stage in (0, 1, 2, 3)}
MICRO_BATCHES = (1, 2, 4)


@pytest.mark.golden
@pytest.mark.parametrize("world", [1, 2, 4])
def test_neither_engine_nor_ranks_nor_micro_batches_matter(home: Path, reference: lab.Ran, world: int) -> None:
    """Every pair of engine and ZeRO stage, number of ranks, and micro-batch comes up once over the three worlds: the
    same curve, and the same best weights, whole again on the first rank.

    The bias of attention keys is left out: softmax does not see it, so its gradient is rounding alone, which
    Adam scales up.
    """
    labs = [
        Lab(folder=str(home), hidden=True, training={**engine, "micro_batch": MICRO_BATCHES[(number + world) % 3]})
        for number, engine in enumerate((TORCH, *ZERO.values()))
    ]
    for ranks in zip(*run_gloo(lab.run_all, world, labs), strict=True):
        for ran in ranks:
            assert_same_curve(ran, reference)
        assert set(ranks[0].weights) == set(reference.weights)
        for name, value in reference.weights.items():
            if not name.endswith("key.bias"):
                assert torch.allclose(ranks[0].weights[name], value, rtol=1e-3, atol=1e-5), name


@pytest.mark.golden
def test_ranks_that_cannot_share_evenly(home: Path, reference: lab.Ran) -> None:
    """Three gloo ranks, short last batches included; by tokens, each rank finds by itself how many passes all run."""
    by_tokens = {**ZERO[2], "micro_tokens": 20}
    labs = [Lab(folder=str(home), hidden=True, training=training) for training in ({}, by_tokens)]
    for ran in chain(*run_gloo(lab.run_all, 3, labs)):
        assert_same_curve(ran, reference)


@pytest.mark.golden
def test_deepspeed_resumes_exactly(tmp_path: Path) -> None:
    """Stopped after step 5 and resumed by new processes, at every stage: the curve goes on as if nothing had been."""
    lab.write_model(tmp_path)
    runs = [
        Lab(folder=str(tmp_path), hidden=True, dropout=0.1, training=zero, trial=f"stage-{stage}")
        for stage, zero in ZERO.items()
    ]
    whole = run_gloo(lab.run_whole_then_cut_all, 2, [replace(run, stop_after=5) for run in runs])[0]
    rest = run_gloo(lab.run_all, 2, [replace(run, resume=True) for run in runs])[0]
    for cut, uncut in zip(rest, whole, strict=True):
        assert sorted(cut.curve) == [6, 7, 8]
        for step in (6, 7, 8):
            assert cut.curve[step]["loss"] == pytest.approx(uncut.curve[step]["loss"], rel=1e-6)


#: Ranks, settings and steps of the parts of a run that is moved from one to the next; two epochs, of five steps each.
MOVES: dict[str, list[tuple[int, dict[str, Any], int]]] = {
    "worlds": [(2, ZERO[2], 3), (1, ZERO[0], 2), (3, ZERO[2], 3), (2, ZERO[1], 2)],
    "engines": [(3, ZERO[3], 3), (1, TORCH, 2), (2, {**ZERO[3], "offload": "all"}, 3), (1, ZERO[1], 2)],
}


@pytest.mark.golden
@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_a_run_goes_on_at_other_sizes_and_stages(tmp_path: Path, moves: list[tuple[int, dict[str, Any], int]]) -> None:
    """Stopped three times and resumed by other ranks, stages or engines: the curve is the uninterrupted one's, and over
    two epochs each example was seen twice, once in each."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), hidden=True, steps=10)
    whole = lab.run(replace(run, trial="whole"))
    curve: dict[int, dict[str, float]] = {}
    seen: list[int] = []
    for world, training, steps in moves:
        part = replace(run, training=training, resume=bool(curve), stop_after=steps)
        found = run_gloo(lab.run_part, world, part)
        assert sorted(found[0][0]) == list(range(len(curve) + 1, len(curve) + 1 + steps))
        curve |= found[0][0]
        seen += [row for _, rows in found for row in rows]
        if len(curve) == 5:
            assert sorted(seen) == list(range(lab.ROWS))
    assert sorted(seen) == sorted([*range(lab.ROWS)] * 2)
    assert [curve[step]["loss"] for step in range(1, 11)] == pytest.approx(loss_curve(whole), rel=lab.TOLERANCE)


@pytest.mark.golden
def test_half_precision_goes_on_at_another_stage(tmp_path: Path) -> None:
    """bf16: master weights and moments move in float32, so the rest of the curve is nearly that of one stage alone."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), steps=10, training={**ZERO[1], "precision": "bf16"})
    parts = [
        replace(run, training={**ZERO[stage], "precision": "bf16"}, resume=number > 0, stop_after=steps)
        for number, (stage, steps) in enumerate(((1, 3), (0, 2), (3, 3), (2, 2)))
    ]
    whole, *found = run_gloo(lab.run_parts, 2, [replace(run, trial="whole"), *parts])[0]
    curve = {step: values for part in found for step, values in part.items()}
    assert [curve[step]["loss"] for step in range(1, 11)] == pytest.approx(
        [whole[step]["loss"] for step in range(1, 11)], rel=5e-3
    )


@pytest.mark.golden
def test_deepspeed_in_bf16_and_offloaded(home: Path, reference: lab.Ran) -> None:
    """bf16 stays within 0.5 % of float32 at every stage, the first step of ZeRO 0 included; offload changes nothing."""
    half = [{"precision": "bf16", "zero_stage": stage} for stage in (0, 1, 2, 3)]
    offloaded = [{"offload": "optimizer", "zero_stage": 2}, {"offload": "all", "zero_stage": 3}]
    runs = [
        Lab(folder=str(home), hidden=True, training={"engine": "deepspeed", **settings})
        for settings in (*half, *offloaded)
    ]
    found = run_gloo(lab.run_all, 2, runs)[0]
    for ran in found[:4]:
        assert loss_curve(ran) == pytest.approx(loss_curve(reference), rel=5e-3)
    for ran in found[4:]:
        assert_same_curve(ran, reference)


@pytest.mark.golden
def test_what_deepspeed_refuses_is_told(home: Path) -> None:
    """fp16 has no support on a CPU: one sentence, not a traceback of another library."""
    run = Lab(folder=str(home), training={"engine": "deepspeed", "precision": "fp16", "zero_stage": 2})
    with pytest.raises(ClusterError, match=r"TrainingError: DeepSpeed did not start: Type fp16 is not supported"):
        run_gloo(lab.run, 1, run)


def test_resumed_equals_uninterrupted(home: Path, tmp_path: Path) -> None:
    """Stopped after step 5 of 8, dropout on: the remaining steps and the weights are bit for bit the same."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), dropout=0.1)
    whole = lab.run(replace(run, trial="whole"))
    before = lab.run_until_stopped(replace(run, stop_after=5))
    rest = lab.run(replace(run, resume=True))
    assert sorted(before) == [1, 2, 3, 4, 5] and sorted(rest.curve) == [6, 7, 8]
    assert [{**before, **rest.curve}[step]["loss"] for step in range(1, 9)] == loss_curve(whole)
    assert rest.best == whole.best
    assert all(torch.equal(rest.weights[name], value) for name, value in whole.weights.items())


def test_a_corrupted_checkpoint_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one before is used, and the curve is still the uninterrupted one's."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path))
    whole = lab.run(replace(run, trial="whole"))
    lab.run_until_stopped(replace(run, stop_after=5))
    newest = max((tmp_path / "trial" / "checkpoints").iterdir())
    state = newest / "rank-0" / "engine" / "atoms-00000.safetensors"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    rest = lab.run(replace(run, resume=True))
    assert newest.name in caplog.text
    assert sorted(rest.curve) == [5, 6, 7, 8]
    assert [rest.curve[step]["loss"] for step in (5, 6, 7, 8)] == loss_curve(whole)[4:]


def test_resuming_with_other_labels_is_refused(tmp_path: Path) -> None:
    """Both fingerprints are named."""
    lab.write_model(tmp_path)
    lab.run_until_stopped(Lab(folder=str(tmp_path), stop_after=3))
    with pytest.raises(TrainingError, match="labels labels-1, this run has labels labels-2"):
        lab.run(Lab(folder=str(tmp_path), resume=True, labels="labels-2"))


def test_a_loss_that_is_not_finite_names_step_term_and_rows(tmp_path: Path) -> None:
    """Training does not go on with NaN: the row whose label is broken is named, and its batch is saved."""
    lab.write_model(tmp_path)
    trial, engine = lab.build(Lab(folder=str(tmp_path)))
    found, broken = trial.data.distributions, 30
    assert found is not None
    found.logp[found.entry_offsets[trial.data.stored[broken]]] = float("nan")
    (row,) = trial.data.ids_of(np.array([broken]))
    with pytest.raises(
        TrainingError, match=f"the loss term 'soft' is nan at step . of 8; the labels of {row} are not finite: label"
    ):
        train_run(trial, engine, current_ranks(), lab.Recorder(), resume=False)
    (facts,) = (tmp_path / "trial" / "diagnosis").glob("*.json")
    told = json.loads(facts.read_text())
    (culprit,) = told["not_finite"]
    place = told["rows"][culprit].index(row)
    with safe_open(facts.with_suffix(".safetensors"), framework="pt") as saved:
        logp = saved.get_tensor(f"{culprit}.batch.targets.logp_NK")
        assert f"{culprit}.inputs.input_ids" in saved.keys()  # noqa: SIM118  (no mapping)
    assert logp.isnan().any(dim=1).nonzero().flatten().tolist() == [place]


def test_a_loss_that_overflows_names_the_batch(tmp_path: Path) -> None:
    """Where all labels are sound it is the student that broke: the rows of the step are told, and what to change."""
    lab.write_model(tmp_path)
    trial, engine = lab.build(Lab(folder=str(tmp_path)))
    with torch.no_grad():
        next(iter(engine._module.parameters())).fill_(float("inf"))  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="at step 1 of 8; it came from 12 rows, .* and 4 more; their labels"):
        train_run(trial, engine, current_ranks(), lab.Recorder(), resume=False)


def test_rows_that_are_to_come_twice_do(tmp_path: Path) -> None:
    """An epoch goes through the chosen rows, those that are chosen twice among them."""
    lab.write_model(tmp_path)
    trial, engine = lab.build(Lab(folder=str(tmp_path), steps=2, training={"global_batch": 24}))
    watched = lab.Watched(trial.data, engine)  # type: ignore[arg-type]
    rows = np.repeat(np.arange(30), [2] * 12 + [1] * 18)
    trial = replace(trial, data=watched, rows=rows)
    train_run(trial, engine, current_ranks(), lab.Recorder(), resume=False)
    assert sorted(watched.seen) == rows.tolist()


def test_patience_ends_an_arm_that_learns_nothing_more(tmp_path: Path) -> None:
    """A rate that ruins the student: two looks without a better one, and its best weights are those from before."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), steps=40, training={"learning_rate": 0.5, "evaluate_every": 2, "patience": 2})
    ended = lab.run(run)
    assert max(ended.curve) == ended.best["step"] + 4 < 40
    impatient = replace(run, training={**run.training, "patience": 0}, steps=max(ended.curve), trial="other")
    assert lab.run(impatient).best["score"]["value"] >= ended.best["score"]["value"]


def test_a_machine_that_is_to_go_is_answered_by_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is complete before the next step, and the run goes on."""
    monkeypatch.setattr(train_loop, "POLL_SECONDS", 0.0)
    lab.write_model(tmp_path)
    trial, engine = lab.build(Lab(folder=str(tmp_path), training={"checkpoint_every": 100}))
    recorder = lab.Recorder(save_after=3)
    train_run(trial, engine, current_ranks(), recorder, resume=False)
    assert [one["step"] for one in recorder.saved] == [3] and max(recorder.curve) == 8


def test_a_resumed_run_keeps_the_last_look_and_not_the_best_one(tmp_path: Path) -> None:
    """Of a student that got worse: the best checkpoints are chosen by the last look, and no newer one is there yet."""
    lab.write_model(tmp_path)
    settings = {"learning_rate": 0.5, "evaluate_every": 2, "checkpoint_every": 1, "checkpoints": {"last": 40}}
    run = Lab(folder=str(tmp_path), steps=40, training=settings)
    worse = max(lab.run(replace(run, trial="ended", training={**settings, "patience": 1})).curve)
    lab.run_until_stopped(replace(run, stop_after=worse))
    lab.run_part(replace(run, resume=True, stop_after=1))
    markers = (tmp_path / "trial" / "checkpoints").glob("*/marker.json")
    told = {one["step"]: one["state"] for one in (json.loads(path.read_text()) for path in markers)}
    assert told[worse + 1]["validation"] == told[worse]["validation"]
    assert (
        told[worse]["validation"]["value"] >= told[worse]["best"]["score"]["value"]
        and told[worse]["best"]["step"] < worse
    )


def test_checkpoints_are_told_of_when_they_are_complete(tmp_path: Path) -> None:
    """Every one, the last too, with its own step and URL, however late its upload ended."""
    lab.write_model(tmp_path)
    found = lab.run(Lab(folder=str(tmp_path)))
    assert [one["step"] for one in found.saved] == [2, 4, 6]
    assert all(Path(one["url"]).name.startswith(f"{one['step']:08d}-") for one in found.saved)


def test_the_torch_engine_refuses_fp16(tmp_path: Path) -> None:
    """It has no loss scaling."""
    lab.write_model(tmp_path)
    with pytest.raises(ConfigError, match="engine torch supports precision fp32 and bf16, found fp16"):
        lab.build(Lab(folder=str(tmp_path), training={"precision": "fp16"}))


def test_bf16_trains(tmp_path: Path) -> None:
    """Under autocast the losses stay near float32's."""
    lab.write_model(tmp_path)
    half = lab.run(Lab(folder=str(tmp_path), training={"precision": "bf16"}))
    full = lab.run(Lab(folder=str(tmp_path)))
    assert loss_curve(half) == pytest.approx(loss_curve(full), rel=0.05)
