"""The parts of a plan that need no cluster: which rows are probed, which forms are compared, what a person reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill import cli
from ray_distill.artifacts import SnapshotRef
from ray_distill.cli.render_plan import show_plan
from ray_distill.config import Campaign, SnapshotConfig, load_config, parse_config
from ray_distill.errors import ConfigError
from ray_distill.labels.model import rowids
from ray_distill.labels.sizing.forecast import TIME_ERROR, Breakeven
from ray_distill.models.core.row_classes import named
from ray_distill.runtime import campaign
from ray_distill.runtime.core.session import parent_key
from ray_distill.runtime.forecast.forecast import _views_note, _Work, choose_pieces, little_mass, plan
from ray_distill.runtime.forecast.plan_report import PlanReport
from ray_distill.runtime.forecast.probe import Piece, unit_rows
from ray_distill.runtime.forecast.rehearsal import paced
from ray_distill.runtime.forecast.storage_options import Comparison, compare
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts
from ray_distill.snapshots.augment.add_views import add_views
from ray_distill.snapshots.augment.kinds import Chosen
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.objective.validate_losses import MIN_RETAINED_MASS
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.text_views import TEXT_VIEWS
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import FakeTeacher

UNITS = [Piece(shard=f"s{at}", start=0, stop=100, rows=tuple(range(100))) for at in range(20)]


def config(**planned: float) -> Campaign:
    """A campaign with a top-k of 4 of few classes."""
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "snapshot": {"source": "rows.jsonl"},
            "labels": {"teacher": {"model": "m:f"}, "signal": {"estimator": "topk", "k": 4, "temperatures": [1, 2]}},
            "plan": planned,
        }
    )


def test_the_probed_rows_are_spread_over_the_units_and_seeded() -> None:
    """80 of 2,000 rows: eight pieces of ten, of as many units, the same again with the same seed."""
    pieces = choose_pieces(UNITS, 80, seed=3)
    assert [len(piece.rows) for piece in pieces] == [10] * 8
    assert len({piece.shard for piece in pieces}) == 8
    assert pieces == choose_pieces(UNITS, 80, seed=3) != choose_pieces(UNITS, 80, seed=4)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 50])
def test_few_rows_are_all_probed_once(rows: int) -> None:
    """In pieces of like size, although there is one unit."""
    unit = Piece(shard="s", start=0, stop=100, rows=tuple(range(0, 2 * rows, 2)))
    found = [row for piece in choose_pieces([unit], 512, seed=0) for row in piece.rows]
    assert sorted(found) == list(unit.rows)


def test_no_row_is_probed_twice_where_units_differ_in_size() -> None:
    """Large units give several pieces; what a piece holds is of its unit, in ascending order."""
    units = [
        Piece(shard=f"s{at}", start=5, stop=5 + size, rows=tuple(range(5, 5 + size)))
        for at, size in enumerate((3, 900, 10, 87))
    ]
    pieces = choose_pieces(units, 200, seed=1)
    rows = [(piece.shard, row) for piece in pieces for row in piece.rows]
    assert len(rows) == len(set(rows)) and 150 <= len(rows) <= 200
    assert all(list(piece.rows) == sorted(piece.rows) for piece in pieces)
    assert sum(len(piece.rows) for piece in pieces if piece.shard == "s1") >= 150


def test_units_of_a_new_store_are_ranges_of_its_shards() -> None:
    """250 and 100 rows in units of 100."""
    assert unit_rows([250, 100], 100) == [100, 100, 50, 100]


def test_a_rehearsal_has_a_pace_between_its_units_and_what_is_done_once() -> None:
    """Units of 8 rows at 10, 11 and 12 s of 15: 8 rows a second; 9 s before the first one began, 3 s at the end."""
    found = paced([(8, 10.0), (8, 11.0), (8, 12.0)], 15.0, most=100.0)
    assert (found.rows_per_second, found.once) == pytest.approx((8.0, 12.0))


def test_units_that_come_together_are_not_faster_than_the_teacher() -> None:
    """Two at once, or a single one: the pace is that of the teachers alone."""
    for arrivals in ([(8, 10.0), (8, 10.0)], [(8, 10.0), (8, 10.001)], [(8, 10.0)]):
        assert paced(arrivals, 12.0, most=16.0).rows_per_second == 16.0
    assert paced([(8, 10.0)], 12.0, most=16.0).once == 11.5


def forms(classes: int, **planned: float):
    """Compare the forms for a fake teacher of so many classes, on 300 rows."""
    names = tuple(f"class{at}" for at in range(classes))
    facts = TeacherFacts(fingerprint="f", space=named(names), layers=(), head_url=None, describe={})
    ids = rowids.to_arrow(np.sort(rowids.from_bytes(row_id(number) for number in range(300))))
    encoded = Encoded(row_ids=ids, features={})
    teacher = FakeTeacher(space=facts.space)
    comparison = Comparison(
        config=config(**planned), facts=facts, teacher=teacher, units=[512, 100], kept=1.0, positions=1.0
    )
    return compare(comparison, encoded)


def test_the_forms_of_a_teacher_with_few_classes() -> None:
    """The configured one first, the dense one exact but for its encoding, nothing drawn."""
    found = forms(10)
    assert [(option.estimator, option.encoding) for option in found.options] == [
        ("topk", "lossless"),
        ("dense", "compact"),
        ("topk", "compact"),
        ("topk", "compact"),
    ]
    assert found.full and found.curve[-1].k == 10 and found.curve[-1].nats == 0
    assert found.options[0].k == 4 and found.options[0].nats == pytest.approx(found.curve[2].nats, abs=1e-6)
    assert found.options[1].nats < 1e-3
    assert found.options[2].k == found.smallest_k
    assert found.options[3].bytes_a_position < found.options[0].bytes_a_position
    assert found.options[0].total_bytes == pytest.approx(found.options[0].bytes_a_position * 612, rel=1e-3)


def test_the_forms_of_a_teacher_with_more_classes_than_are_looked_at() -> None:
    """The likeliest 1,024 of 5,000: what draws is among the forms, and its noise is told."""
    found = forms(5000, target_nats=1e-7)
    assert not found.full and found.smallest_k is None
    drawn = {option.estimator: option for option in found.options if option.draws}
    assert set(drawn) == {"sampled", "hybrid"}
    assert 0 < drawn["hybrid"].noise < drawn["sampled"].noise < 1 / 50


def test_a_temperature_at_which_too_little_is_stored_is_foreseen() -> None:
    """Of 5,000 classes with random logits, four have little of the mass, and less when it is softened."""
    few = forms(5000).mass
    assert 0 < few["2"] < few["1"] < 1 and forms(3).mass == pytest.approx({"1": 1, "2": 1})
    value = config().model_dump(mode="json", by_alias=True)
    softened = parse_config(value | {"student": {"losses": {"soft": {"temperature": 2.0}}}})
    (note,) = little_mass(softened, few)
    assert note.startswith("training will refuse these labels: student.losses.soft.temperature 2: the stored classes ")
    assert f"only {few['2']:.2f} of" in note
    assert little_mass(softened, {"1": 0.1, "2": MIN_RETAINED_MASS}) == []
    assert little_mass(softened, {}) == [], "drawn classes have an unbiased tail at every temperature"


def test_what_is_planned_for_changes_no_stage(tmp_path: Path) -> None:
    """Another target is the same campaign, with the same snapshot and run."""
    one, other = config(), config(target_nats=0.1, students=9, epochs=2)
    assert parent_key(one) == parent_key(other)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "x"}\n', encoding="utf-8")
    keys = {
        campaign.snapshot_key(
            value.model_copy(update={"snapshot": value.snapshot.model_copy(update={"source": str(rows)})})
        )
        for value in (one, other)
    }
    assert len(keys) == 1


REPORT = PlanReport(
    campaign="c",
    snapshot=SnapshotRef(url="s", fingerprint="f"),
    store="store",
    splits={"train": 90, "test": 10},
    rows_total=100,
    rows_reused=10,
    rows=90,
    units=3,
    positions=90,
    probed_rows=20,
    probed_rejected=1,
    bytes_labels=2_000_000,
    bytes_hidden={"3": 1000},
    bytes_a_position=22.2,
    seconds=90.0,
    seconds_once=5.0,
    time_error=TIME_ERROR,
    core_hours=0.5,
    accelerator_hours=0.0,
    money=1.25,
    currency="EUR",
    rows_per_second=12.0,
    target_nats=1e-3,
    break_even=Breakeven(passes=6, offline_money=2, online_money=3, offline_hours=1, online_hours=2, passes_to_pay=4.0),
    ranks={"3": {"width": 384, "0.95": 20}},
    notes=("a note",),
)


def test_a_person_reads_rows_bytes_time_and_money() -> None:
    """Time and money with their error, each form with its mark, and whether it pays."""
    found = forms(10)
    best = found.options[2]
    text = show_plan(REPORT.with_changes(curve=found.curve, options=found.options, recommended=best))
    for part in (
        "90 of 100",
        "labels 2.0 MB",
        "layer 3 1.0 kB",
        "1 min 30 s ± 50%",
        "1.25 EUR ± 50%",
        "configured",
        "recommended",
        "offline pays for 6 passes",
        "from 4.0 passes",
        "20 keep 95%",
        "a note",
    ):
        assert part in text, text
    heading = "mass of the k most likely classes"
    assert heading in text and heading not in show_plan(REPORT.with_changes(options=found.options))


def test_a_report_is_plain_json() -> None:
    """What is not known of draws is null, not NaN."""
    found = forms(100)
    unknown = replace(found.options[0], noise=float("nan"))
    value = REPORT.with_changes(options=(unknown,), curve=found.curve).to_json()
    assert '"noise": null' in value and '"kind": "PlanReport"' in value


def test_nothing_left_is_said_in_two_lines() -> None:
    """No bytes, no hours, no tables."""
    text = show_plan(REPORT.with_changes(rows=0, units=0, notes=("every row is labelled already",)))
    assert "0 of 100 to label" in text and "every row is labelled already" in text and "estimator" not in text


def test_a_wrong_plan_section_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, before anything starts."""
    path = tmp_path / "c.yaml"
    path.write_text(config().model_dump_json(by_alias=True), encoding="utf-8")
    assert load_config(path).plan.epochs is None
    assert cli.main(["plan", str(path), "--set", "plan.target_nats=0", "--set", "plan.students=0"]) == 1
    told = capsys.readouterr().err
    assert "plan.target_nats" in told and "plan.students" in told


def test_a_teacher_that_does_not_exist_is_refused_before_ray_is_asked(tmp_path: Path) -> None:
    """As `run` refuses it."""
    value = config().model_dump(mode="json", by_alias=True)
    value["labels"]["teacher"]["model"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        plan(parse_config(value))
    assert not list(tmp_path.iterdir())


def test_the_time_that_views_take_is_their_share_of_the_rows(tmp_path: Path) -> None:
    """Of a new store; where some rows have labels, which of them are views is not known."""
    texts = [f"row {n} of some words" for n in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    settings = SnapshotConfig(source=str(tmp_path / "rows.parquet"))
    parent = open_snapshot(take_snapshot(settings, input_column="text", seed=0, url=str(tmp_path)))
    chosen = [Chosen(name="cut", kind=TEXT_VIEWS["cut"], strength=0.5)]
    derived = open_snapshot(add_views(parent, chosen, views=1, seed=0, url=str(tmp_path), shard_rows=100))
    views, total = sum(derived.manifest.view_counts["kept"].values()), sum(shard.rows for shard in derived.shards)
    piece = Piece(shard="s", start=0, stop=total, rows=tuple(range(total)))
    (note,) = _views_note(derived, _Work(pieces=(piece,), reused=0, total=total, new=True), seconds=float(10 * total))
    assert note == f"{views} of {total} rows to label are views (snapshot.augment), which take {10 * views:,} s"
    (note,) = _views_note(derived, _Work(pieces=(), reused=total, total=total, new=False), seconds=0.0)
    assert note == f"{views} of {total} rows are views (snapshot.augment); 0 rows have no labels yet"
    assert _views_note(parent, _Work(pieces=(piece,), reused=0, total=total, new=True), seconds=1.0) == []
