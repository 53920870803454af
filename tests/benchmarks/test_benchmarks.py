"""Each benchmark runs once, small, and prints its ratio; the numbers themselves are for people."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.slow
def test_the_codec_is_smaller_than_nested_lists():
    """Both ratios are printed, and it takes less than half of the baseline's bytes."""
    printed = _printed("bench_codec.py", "--positions", "8000")
    speed = re.search(r"([\d.]+)x nested lists", printed)
    size = re.search(r"nats, ([\d.]+) of its", printed)
    assert speed, printed
    assert size and float(size[1]) < 0.5, printed


@pytest.mark.slow
def test_bytes_are_told_for_every_form_at_a_large_vocabulary():
    """Each form has its bytes, its error at every temperature, and both ratios; none adds a thousandth of a nat."""
    lines = _printed("bench_codec.py", "wide", "--positions", "256").splitlines()
    assert len(lines) == 6
    for line in lines:
        assert re.search(r"[\d.]+ bytes a position \([\d.]+ of \d+·6 raw, [\d.]+ of k=128", line), line
        assert all(float(nats) < 1e-3 for nats in re.findall(r"([\d.e-]+) nats", line)), line


@pytest.mark.slow
def test_the_pipeline_is_compared_with_a_bare_loop():
    """The ratio and both rates are printed; with a teacher that costs nothing it is only the pipeline's own cost."""
    printed = _printed("bench_labelling.py", "tiny", "--rows", "600")
    assert re.search(r"labelling tiny: [\d.]+ of a bare forward loop \([\d.]+ against [\d.]+ before", printed), printed


@pytest.mark.slow
def test_opening_through_a_checkpoint_is_compared_with_the_records():
    """The ratio of a store with all its records, and what opening one of many units takes."""
    printed = _printed("bench_ledger.py", "--units", "20000", "--small", "6400")
    assert re.search(r"6400 units, opening: records .*; ratio [\d.]+\n", printed), printed
    assert re.search(r"20000 units, 2.0e\+07 rows: .*peak [\d]+ MB", printed), printed


@pytest.mark.slow
def test_a_plan_is_compared_with_its_run():
    """One case: the error of the forecast in bytes; the time may be outside of its error."""
    printed = _printed("bench_plan.py", "--cases", "1")
    error = re.search(r"bytes +([+-][\d.]+)%   seconds forecast .* real +[\d.]+ +(covered|MISSED)", printed)
    assert error and abs(float(error[1])) < 5, printed


@pytest.mark.slow
def test_training_from_the_store_is_compared_with_the_two_other_ways():
    """Both ratios are printed."""
    printed = _printed("bench_language_training.py", "--steps", "2")
    assert re.search(r"store: [\d.]+ of cross-entropy in memory .* [\d.]+ times the steps of the online way", printed)


@pytest.mark.slow
def test_engines_and_workers_are_compared():
    """The ratio of the engines, and that of two workers to one with each."""
    printed = _printed("bench_engines.py", "--width", "64", "--layers", "2", "--steps", "3", "--rounds", "1")
    assert re.search(r"DeepSpeed at ZeRO 0: [\d.]+ of plain torch's time a step \([\d.]+ against [\d.]+ ms", printed)
    for way in ("plain torch", "ZeRO 1"):
        assert re.search(rf"two workers, {way}: [\d.]+ times the steps of one .* \d+% of a step comm", printed), printed


@pytest.mark.slow
def test_checkpoints_of_many_ranks_are_told():
    """How evenly they are dealt, and how many files are read to save, find and fetch one."""
    printed = _printed("bench_checkpoints.py", "--ranks", "32", "--kilobytes", "1")
    assert re.search(r"dealt to 32 ranks: the fullest writes [\d.]+ GB, 0\.\d+ of what it writes where whole", printed)
    assert "saved in" in printed and re.search(r"fetched in [\d.]+ s, 129 files read", printed), printed
    assert "with 0.0791 of the reads of every rank" in printed, printed


@pytest.mark.slow
def test_passes_by_tokens_are_compared_with_passes_by_rows():
    """The ratio, and the padding of both."""
    printed = _printed("bench_token_budget.py", "--width", "64", "--layers", "2", "--steps", "2", "--rounds", "1")
    assert re.search(r"by tokens: [\d.]+ examples a second, [\d.]+ passes a step, \d+% of the tokens padding", printed)
    assert re.search(r"by tokens: [\d.]+ times the examples a second of .* at 2048 tokens a pass", printed)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "examples"), [("rows", "20480"), ("documents", "2560")])
def test_the_loader_is_compared_with_datasets(kind, examples):
    """Both ratios are printed, units are streamed and read about once; what is not measured is said."""
    printed = _printed("bench_loader.py", kind, "--examples", examples)
    amplification = re.search(r"from 3\d units of \d+, read ([\d.]+) times an epoch", printed)
    assert amplification and 1 <= float(amplification[1]) <= 1.2, printed
    assert re.search(r"[\d.]+x datasets \([\d,]+/s\); a CPU second [\d.]+x", printed), printed
    assert "mosaicml-streaming was not measured" in printed


@pytest.mark.slow
def test_the_order_is_measured_at_many_ranks():
    """Time, memory and state are printed, each example came once, and at most a fifth of the units is read twice."""
    printed = _printed("bench_order.py", "--examples", "1e7", "--ranks", "64", "--count")
    assert re.search(r"MB, \d+ bytes of state; [\d,]+x faster a step than a permutation", printed), printed
    amplification = re.search(r"read amplification of 3 ranks over an epoch: ([\d.]+)", printed)
    assert amplification and 1 <= float(amplification[1]) <= 1.2, printed
    assert "counted: 10,000,000 of 10,000,000 examples came exactly once" in printed


def _printed(name, *arguments):
    done = subprocess.run(
        [sys.executable, FOLDER / name, *arguments], capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout
