"""A sweep's comparison: the frontier, the table, the figures and the page."""

import csv
import io
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from ray_distill.artifacts import Efficiency, Estimate, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult, best_of, mark_frontier, pareto, to_csv
from ray_distill.evaluation.sweep.html import markdown, render_sweep
from ray_distill.evaluation.sweep.plots import BEST, FAILED, axes_of, frontier_figure, make_axis, parallel_figure

LABELS = LabelSetRef(
    store="s", fingerprint="f", snapshot=SnapshotRef(url="u", fingerprint="g"), log_length=1, log_digest="d"
)
WIDTH, RATE = "student.model.overrides.width", "student.training.learning_rate"


def _trial(number: int, nll: float | None, size: int = 0, ms: float = 0.0, **more: Any) -> TrialResult:
    finished = size > 0
    student = StudentRef(url=f"s3://b/{number}", fingerprint="x", arm="student", labels=LABELS)
    values: dict[str, Any] = {
        "number": number,
        "name": f"width={size}",
        "verdict": "finished" if finished else "stopped",
        "changes": {WIDTH: size, RATE: 0.01},
        "metrics": {} if nll is None else {"validation_nll": nll},
        "epoch": 2.0,
        "efficiency": Efficiency(
            parameters=size,
            bytes_on_disk=4 * size,
            latency_ms_p50=ms,
            latency_ms_p95=2 * ms,
            examples_per_second=1e3 / ms,
        )
        if finished
        else None,
        "student": student if finished else None,
        "run_id": f"run-{number}",
    }
    return TrialResult(**values | more)


#: 1 and 3 are on the frontier, 2 is slower than 3 and worse; 4 was stopped, 5 failed, 6 is 1 again.
TRIALS = (
    _trial(1, 0.9, 100, 1.0),
    _trial(2, 0.8, 300, 3.0),
    _trial(3, 0.5, 200, 2.0),
    _trial(4, 1.4, reason="at epoch 2: place 4 of 4 at the rung of 2"),
    _trial(5, None, verdict="failed", reason="the loss is nan", epoch=None),
    _trial(6, 0.9, 100, 1.0, same_as=1),
)
VALUES = {WIDTH: [100, 300, 200, 400, 800], RATE: ["slow", "slow", "fast", "fast", "slow"]}


@pytest.fixture
def result() -> SweepResult:
    trials = mark_frontier(TRIALS, "validation_nll", more_is_better=False)
    return SweepResult(
        url="u",
        objective="validation_nll",
        more_is_better=False,
        trials=trials,
        best=best_of(trials, "validation_nll", more_is_better=False),
        validation_rows=148,
        notes=("a <note>",),
        tracking_uri="t",
        run_id="r",
        review="http://x",
    )


def test_a_point_is_on_the_frontier_unless_another_one_dominates_it() -> None:
    """At most as large in all, smaller in one; equal points do not dominate each other."""
    assert pareto([(1, 4), (2, 3), (3, 3), (4, 1), (1, 4)]) == [True, True, False, True, True]
    assert pareto([]) == []
    assert pareto([(1, 1)]) == [True]


def test_the_frontier_of_random_points_is_what_no_other_point_improves_on() -> None:
    """Against the definition, spelt out in numpy."""
    points_N3 = np.random.default_rng(0).integers(0, 6, (80, 3))
    no_worse_NN = (points_N3[:, None] <= points_N3[None]).all(-1)
    better_NN = (points_N3[:, None] < points_N3[None]).any(-1)
    wanted = ~(no_worse_NN & better_NN).any(0)
    assert pareto(points_N3.tolist()) == wanted.tolist()


def test_only_finished_trials_are_on_the_frontier_and_the_best_is_the_first_of_equals(result: SweepResult) -> None:
    """Quality, parameters and latency count at once; a trial that is another one again shares its mark."""
    assert [trial.number for trial in result.trials if trial.on_frontier] == [1, 3, 6]
    assert result.best == 3
    more = [_trial(1, 0.7, 1, 1.0), _trial(2, 0.9, 1, 1.0), _trial(3, 0.9, 1, 1.0)]
    assert best_of(more, "validation_nll", more_is_better=True) == 2
    assert [t.on_frontier for t in mark_frontier(more, "validation_nll", more_is_better=True)] == [False, True, True]


def test_the_result_goes_through_json(result: SweepResult) -> None:
    """Also trials without a student, and values of any kind."""
    assert SweepResult.from_json(result.to_json()) == result
    assert (result.count("finished"), result.count("stopped"), result.count("failed")) == (3, 1, 1)


def test_the_table_has_a_row_a_trial(result: SweepResult) -> None:
    """What was changed is a column each; lists are JSON in one cell."""
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert rows[2][WIDTH] == "200"
    assert rows[2]["validation_nll"] == "0.5"
    assert rows[2]["latency_ms_p50"] == "2.0"
    assert rows[3]["parameters"] == ""
    assert rows[4]["reason"] == "the loss is nan"
    assert rows[5]["same_as"] == "1"


def test_a_latency_of_a_busy_machine_is_not_a_headline_to_compare(result: SweepResult) -> None:
    """Its tile states it; that of an idle machine has no such words."""
    busy = result.winner.efficiency
    assert busy is not None
    trials = tuple(
        trial.with_changes(efficiency=busy.with_changes(latency_spread=0.9)) if trial.number == result.best else trial
        for trial in result.trials
    )
    pages = [
        render_sweep(found, title="t", values=VALUES, rerun="r", provenance={})
        for found in (result, result.with_changes(trials=trials))
    ]
    assert ["busy machine: not comparable" in page for page in pages] == [False, True]


def test_a_proportion_stands_beside_the_objective_with_its_interval(result: SweepResult) -> None:
    """In table, tiles and summary; a trial that did not come to it has a dash; without one there is no column."""
    shares = {1: Estimate(value=0.5, low=0.42, high=0.58, n=148), 3: Estimate(value=0.75, low=0.68, high=0.81, n=148)}
    trials = tuple(one.with_changes(headline=shares.get(one.number)) for one in result.trials)
    page = render_sweep(
        found := result.with_changes(trials=trials, headline="accuracy"),
        title="c",
        values=VALUES,
        rerun="x",
        provenance={},
    )
    assert '<th scope="col">accuracy (95 % interval)</th>' in page
    assert "<td>0.7500 [0.6800, 0.8100]</td>" in page
    assert "0.680 to 0.810, 148 rows" in page
    assert "accuracy 0.7500 [0.6800, 0.8100] on 148 validation rows" in markdown(found)
    assert list(csv.DictReader(io.StringIO(to_csv(found))))[2]["headline_high"] == "0.81"
    plain = render_sweep(result, title="c", values=VALUES, rerun="x", provenance={})
    assert "95 % interval" not in plain and "accuracy" not in markdown(result)


def test_numbers_lie_by_size_and_words_evenly() -> None:
    """Far apart: by their logarithm; upside down: small is high; one value: in the middle; None: nowhere."""
    assert make_axis("x", [1, 3, 2, None]).places == (0, 1, 0.5, None)
    assert make_axis("x", [1e-4, 1e-2, 1e-3]).places == pytest.approx((0, 1, 0.5))
    assert make_axis("x", [1, 3, 2], upside_down=True).places == (1, 0, 0.5)
    assert make_axis("x", [7, 7]).places == (0.5, 0.5)
    assert make_axis("x", ["a", "b", "a"]).places == (0.25, 0.75, 0.25)
    assert make_axis("x", [[1, 2], [3, 4]]).ticks == ((0.25, "[1, 2]"), (0.75, "[3, 4]"))
    assert make_axis("x", [[0.1], [0.2]]).ticks == ((0, "0.1"), (1, "0.2"))
    assert make_axis("x", [True, False]).places == (0.25, 0.75)
    assert make_axis("x", [None, None]).places == (None, None)


def test_an_axis_of_many_numbers_has_few_ticks_and_both_ends() -> None:
    """They do not lie on each other."""
    for values in (list(range(3, 98)), list(np.geomspace(0.003, 700, 50)), [1.0, 1.001, 2.0]):
        ticks = make_axis("x", values).ticks
        assert (ticks[0][0], ticks[-1][0]) == (0, 1)
        assert 2 <= len(ticks) <= 8
        assert all(b[0] - a[0] > 0.04 for a, b in zip(ticks, ticks[1:], strict=False))


def test_a_trial_is_a_line_through_its_values_as_far_as_it_came(result: SweepResult) -> None:
    """The stopped one ends at its objective, the failed one before it; the best is thick; duplicates are left out."""
    columns = axes_of(result, VALUES)
    assert [column.name for column in columns] == [
        "model.overrides.width",
        "learning_rate",
        "validation NLL, nats",
        "parameters",
        "latency p50, ms",
    ]
    (axes,) = parallel_figure(result, VALUES).axes
    lines = {line.get_gid(): line for line in axes.lines if line.get_gid()}
    assert set(lines) == {f"trial-{number}" for number in range(1, 6)}
    for number, line in lines.items():
        index = int(number.removeprefix("trial-")) - 1
        heights = [column.places[index] for column in columns]
        assert line.get_xdata().tolist() == [at for at, height in enumerate(heights) if height is not None]
        assert line.get_ydata().tolist() == pytest.approx([height for height in heights if height is not None])
    assert [len(lines[f"trial-{number}"].get_xdata()) for number in range(1, 6)] == [5, 5, 5, 3, 2]
    assert lines["trial-3"].get_linewidth() == max(line.get_linewidth() for line in lines.values())
    assert (lines["trial-3"].get_color(), lines["trial-5"].get_color()) == (BEST, FAILED)
    assert lines["trial-3"].get_ydata()[2] == 1, "the best objective is up"


def test_the_frontier_shows_finished_trials_by_size_and_by_latency(result: SweepResult) -> None:
    """Better is up; filled and numbered are those on the frontier."""
    for panel, xs in zip(frontier_figure(result).axes, ([100, 300, 200], [1.0, 3.0, 2.0]), strict=True):
        dots = [line for line in panel.lines if len(line.get_xdata()) == 1]
        places = [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots]
        assert places == list(zip(xs, [0.9, 0.8, 0.5], strict=True))
        filled = [line.get_markerfacecolor() != "none" and to_hex(line.get_markerfacecolor()) == BEST for line in dots]
        assert filled == [True, False, True]
        assert [text.get_text() for text in panel.texts] == ["1", "3"]
        assert panel.get_ylim()[0] > panel.get_ylim()[1], "less is better, so the axis points down"


def test_the_page_fetches_nothing_and_escapes_what_people_wrote(result: SweepResult) -> None:
    """No script, no address to load from; every line of the plot has its title."""
    page = render_sweep(result, title="c <b>", values=VALUES, rerun="ray-distill run 'x'", provenance={"labels": "f"})
    assert "<script" not in page
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?https?:", page)
    assert "c &lt;b&gt;" in page
    assert "a &lt;note&gt;" in page
    for number in range(1, 6):
        assert f'<g id="trial-{number}"><title>{number}: width=' in page
    assert "as trial 1" in page
    assert "var(--ground)" in page
    assert "#fefefe" not in page


def test_the_page_does_without_timings(result: SweepResult) -> None:
    """Students that could not be timed are still compared by quality."""
    bare = result.with_changes(trials=tuple(trial.with_changes(efficiency=None) for trial in result.trials))
    page = render_sweep(bare, title="c", values=VALUES, rerun="x", provenance={})
    assert "Quality, size and latency" not in page
    assert "latency p50" not in page.split("<h2>Table")[0]


def test_the_runs_page_says_what_won(result: SweepResult) -> None:
    """Name, number, value and what became of the others."""
    text = markdown(result)
    assert "**Best: width=200** (trial 3), validation_nll 0.5000 on 148 validation rows." in text
    assert "3 finished, 1 stopped, 1 failed" in text
    assert "- a <note>" in text
