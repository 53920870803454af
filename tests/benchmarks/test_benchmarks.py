"""Each benchmark runs once, small and in this process, and prints its ratio; the numbers are for people."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
TABLES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*_table.py"))
Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """A function that runs the `main` of a benchmark and returns what it printed."""

    def run(name: str, *arguments: str) -> str:
        importlib.import_module(f"tests.benchmarks.{name}").main(arguments)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_explains_itself(name: str, printed: Printed) -> None:
    """Every one can be imported and has ``--help``: a quick test, because the others run in `.ci/nightly` alone."""
    with pytest.raises(SystemExit) as ended:
        printed(name, "--help")
    assert ended.value.code == 0


@pytest.mark.parametrize("name", TABLES)
def test_each_golden_table_explains_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise: the tables run in `.ci/nightly` alone."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tests.golden.{name}").main()
    assert ended.value.code == 0


@pytest.mark.bench
def test_the_codec_is_smaller_than_nested_lists(printed: Printed) -> None:
    """Both ratios are printed, and it takes less than half of the baseline's bytes."""
    out = printed("bench_codec", "--positions", "8000")
    speed = re.search(r"([\d.]+)x nested lists", out)
    size = re.search(r"nats, ([\d.]+) of its", out)
    assert speed, out
    assert size and float(size[1]) < 0.5, out


@pytest.mark.bench
def test_bytes_are_told_for_every_form_at_a_large_vocabulary(printed: Printed) -> None:
    """Each form has its bytes, its error at every temperature, and both ratios; none adds a thousandth of a nat."""
    lines = printed("bench_codec", "wide", "--positions", "256").splitlines()
    assert len(lines) == 6
    for line in lines:
        assert re.search(r"[\d.]+ bytes a position \([\d.]+ of \d+·6 raw, [\d.]+ of k=128", line), line
        assert all(float(nats) < 1e-3 for nats in re.findall(r"([\d.e-]+) nats", line)), line


@pytest.mark.bench
def test_the_pipeline_is_compared_with_a_bare_loop(printed: Printed) -> None:
    """The ratio and both rates are printed; with a teacher that costs nothing it is only the pipeline's own cost."""
    out = printed("bench_labelling", "tiny", "--rows", "600")
    assert re.search(r"labelling tiny: [\d.]+ of a bare forward loop \([\d.]+ against [\d.]+ before", out), out


@pytest.mark.bench
def test_opening_through_a_checkpoint_is_compared_with_the_records(printed: Printed) -> None:
    """The ratio of a store with all its records, and what opening one of many units takes."""
    out = printed("bench_ledger", "--units", "20000", "--small", "6400")
    assert re.search(r"6400 units, opening: records .*; ratio [\d.]+\n", out), out
    assert re.search(r"20000 units, 2.0e\+07 rows: .*peak [\d]+ MB", out), out


@pytest.mark.bench
def test_a_plan_is_compared_with_its_run(printed: Printed) -> None:
    """One case: the error of the forecast in bytes; the time may be outside of its error."""
    out = printed("bench_plan", "--cases", "1")
    error = re.search(r"bytes +([+-][\d.]+)%   seconds forecast .* real +[\d.]+ +(covered|MISSED)", out)
    assert error and abs(float(error[1])) < 5, out


@pytest.mark.bench
def test_training_from_the_store_is_compared_with_the_two_other_ways(printed: Printed) -> None:
    """Both ratios are printed."""
    out = printed("bench_language_training", "--steps", "2")
    assert re.search(r"store: [\d.]+ of cross-entropy in memory .* [\d.]+ times the steps of the online way", out)


@pytest.mark.bench
def test_engines_and_workers_are_compared(printed: Printed) -> None:
    """The ratio of the engines, and that of two workers to one with each."""
    out = printed("bench_engines", "--width", "64", "--layers", "2", "--steps", "3", "--rounds", "1")
    assert re.search(r"DeepSpeed at ZeRO 0: [\d.]+ of plain torch's time a step \([\d.]+ against [\d.]+ ms", out)
    for way in ("plain torch", "ZeRO 1"):
        assert re.search(rf"two workers, {way}: [\d.]+ times the steps of one .* \d+% of a step comm", out), out


@pytest.mark.bench
def test_checkpoints_of_many_ranks_are_told(printed: Printed) -> None:
    """How evenly they are dealt, and how many files are read to save, find and fetch one."""
    out = printed("bench_checkpoints", "--ranks", "32", "--kilobytes", "1")
    assert re.search(r"dealt to 32 ranks: the fullest writes [\d.]+ GB, 0\.\d+ of what it writes where whole", out)
    assert "saved in" in out and re.search(r"fetched in [\d.]+ s, 129 files read", out), out
    assert "with 0.0791 of the reads of every rank" in out, out


@pytest.mark.bench
def test_passes_by_tokens_are_compared_with_passes_by_rows(printed: Printed) -> None:
    """The ratio, and the padding of both."""
    out = printed("bench_token_budget", "--width", "64", "--layers", "2", "--steps", "2", "--rounds", "1")
    assert re.search(r"by tokens: [\d.]+ examples a second, [\d.]+ passes a step, \d+% of the tokens padding", out)
    assert re.search(r"by tokens: [\d.]+ times the examples a second of .* at 2048 tokens a pass", out)


@pytest.mark.bench
@pytest.mark.parametrize(("kind", "examples"), [("rows", "20480"), ("documents", "2560")])
def test_the_loader_is_compared_with_datasets(printed: Printed, kind: str, examples: str) -> None:
    """Both ratios are printed, units are streamed and read about once; what is not measured is said."""
    out = printed("bench_loader", kind, "--examples", examples)
    amplification = re.search(r"from 3\d units of \d+, read ([\d.]+) times an epoch", out)
    assert amplification and 1 <= float(amplification[1]) <= 1.2, out
    assert re.search(r"[\d.]+x datasets \([\d,]+/s\); a CPU second [\d.]+x", out), out
    assert "mosaicml-streaming was not measured" in out


@pytest.mark.bench
def test_the_order_is_measured_at_many_ranks(printed: Printed) -> None:
    """Time, memory and state are printed, each example came once, and at most a fifth of the units is read twice."""
    out = printed("bench_order", "--examples", "1e7", "--ranks", "64", "--count")
    assert re.search(r"MB, \d+ bytes of state; [\d,]+x faster a step than a permutation", out), out
    amplification = re.search(r"read amplification of 3 ranks over an epoch: ([\d.]+)", out)
    assert amplification and 1 <= float(amplification[1]) <= 1.2, out
    assert "counted: 10,000,000 of 10,000,000 examples came exactly once" in out
