"""A teacher that fails while it labels: each row is labelled or in quarantine with the reason, or the run says why not.

A snapshot of a few units, and a teacher of some weights that fails as it is told.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.config.labels import FailuresConfig
from ray_distill.errors import LabelError
from ray_distill.labels.format.parquet_shards import decode_quarantine
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import LabelStore, create_or_open
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.runtime import campaign
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.identify_teacher import make_manifest, prepare_teacher
from ray_distill.runtime.labelling.label_units import Labelled, label_units
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.receipts import quarantine_file
from tests.labs import campaign as lab
from tests.labs import drawn

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

MODEL = "ray_distill.testing.failing:failing_text_model"
ROWS, BATCH, UNIT = 64, 4, 16
FAILURES = FailuresConfig(batch_seconds=8, attempts=2)


def _teacher(**arguments: Any) -> dict[str, Any]:
    return {"model": MODEL, "arguments": {"classes": list(lab.CLASSES), **arguments}}


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A snapshot with two odd rows (``$`` and ``%`` in their texts), and how an undisturbed run labels it."""

    folder: Path
    config: Campaign
    snapshot: SnapshotRef
    manifest: StoreManifest
    odd: dict[str, bytes]
    """Row id of the row with this character."""
    whole: "Filled" = field(repr=False, default=None)  # type: ignore[assignment]

    @property
    def plan(self) -> Path:
        """The file in which the teacher, always the same by its fingerprint, reads how to fail."""
        return self.folder / "plan.json"

    def label(self, name: str, failures: FailuresConfig = FAILURES, **arguments: Any) -> "Filled":
        """Label everything in a store of this name with a teacher that fails as told."""
        url = str(self.folder / name)
        store = create_or_open(url, self.manifest)
        self.plan.write_text(json.dumps(arguments), encoding="utf-8")
        job = LabelJob(
            task=self.config.task,
            snapshot=self.snapshot,
            teacher=self.config.labels.teacher,
            store_url=url,
            manifest=store.manifest,
            resources=self.config.labels.resources,
            failures=failures,
        )
        counted: list[int] = []
        units = store.coverage(open_snapshot(self.snapshot)).units
        done = label_units(job, store, units, max_rejected=ROWS // 2, progress=counted.append)
        assert sum(counted) == done.rows + done.rejected == sum(len(unit.rows) for unit in units)
        return Filled(url=url, store=store, done=done, snapshot=self.snapshot)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A store after a run."""

    url: str
    store: LabelStore
    done: Labelled
    snapshot: SnapshotRef

    @property
    def receipts(self) -> list[Receipt]:
        return list(self.store.ledger.receipts())

    @property
    def quarantine(self) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for receipt in self.receipts:
            if receipt.quarantine is not None:
                name = quarantine_file(receipt.unit, receipt.attempt)
                ids, reasons = decode_quarantine(files.read_bytes(files.join(self.url, name)), name)
                found |= dict(zip(rowids.to_arrow(ids).to_pylist(), reasons, strict=True))
        return found

    def rows(self) -> dict[bytes, np.ndarray[Any, Any]]:
        """Log-probabilities of every labelled row."""
        ids, signal = open_label_set(self.store.ref(open_snapshot(self.snapshot))).read()
        return dict(zip(ids.to_pylist(), signal.distributions.logp.reshape(len(ids), -1), strict=True))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("failures")
    texts = lab.texts(ROWS, seed=3)
    texts[7], texts[20] = ("$ " + texts[7][0], texts[7][1]), ("% " + texts[20][0], texts[20][1])
    source = lab.write_rows(folder / "rows.jsonl", texts)
    config = lab.load(
        folder / "campaign.yaml",
        lab.config_of(
            folder,
            source,
            _teacher(plan=str(folder / "plan.json")),
            labels__unit_rows=UNIT,
            labels__resources={"batch": BATCH},
            labels__check={"beat_majority": False},
            labels__hidden={"layers": []},
            labels__max_bad_fraction=0.5,
            student__model={
                "from": "module",
                "model": "ray_distill.testing.models:tiny_text_model",
                "arguments": {"classes": list(lab.CLASSES)},
            },
            tracking={"enabled": False},
        ),
    )
    snapshot = campaign.snapshot(config)
    manifest = make_manifest(config, prepare_teacher(config, snapshot, None))
    rows = pa.concat_tables(
        [open_snapshot(snapshot).read(name, columns=["row_id", "text"]) for name in lab.SPLIT_SHARES]
    )
    odd = {
        text[0]: row
        for row, text in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        if text[0] in "$%"
    }
    made = Lab(folder=folder, config=config, snapshot=snapshot, manifest=manifest, odd=odd)
    return replace(made, whole=made.label("whole"))


def _whole_but(given: Lab, found: Filled, rejected: dict[str, str], halved: set[int]) -> None:
    """All rows are labelled as ever, but those with a reason; units that nothing happened to have the same bytes."""
    expected = {given.odd[sign]: reason for sign, reason in rejected.items()}
    assert found.quarantine == expected
    assert (found.done.rows, found.done.rejected) == (ROWS - len(expected), len(expected))
    assert sorted(found.done.reasons.items()) == sorted(
        {reason: sum(one == reason for one in rejected.values()) for reason in rejected.values()}.items()
    )
    wanted, labels = given.whole.rows(), found.rows()
    assert set(labels) == set(wanted) - set(expected)
    for row, logp in labels.items():
        np.testing.assert_allclose(logp, wanted[row], atol=1e-5)
    assert {receipt.halved for receipt in found.receipts} - {0} == halved
    before = {receipt.unit: receipt.parts["distributions"].digest for receipt in given.whole.receipts}
    for receipt in found.receipts:
        if not receipt.halved and not receipt.rejected:
            assert receipt.parts["distributions"].digest == before[receipt.unit]
    _nothing_is_left(found)


def _nothing_is_left(found: Filled) -> None:
    opened = open_snapshot(found.snapshot)
    report = audit(found.url, opened)
    assert report.ok
    assert report.rows + report.quarantined == ROWS
    assert not found.store.coverage(opened).units


def test_without_a_failure_nothing_is_marked(given: Lab) -> None:
    """The undisturbed run: all rows, no isolated unit, no halved batch, and log entries without a mark."""
    assert (given.whole.done.rows, given.whole.done.isolated, given.whole.done.halved) == (ROWS, 0, 0)
    given.whole.store.log.refresh()
    assert {receipt.halved for receipt in given.whole.store.ledger.receipts()} == {0}
    assert len(given.odd) == 2


def test_a_batch_that_does_not_fit_is_halved_until_it_does(given: Lab) -> None:
    """Memory for 3 rows, batches of 4: all rows are labelled in place, and every unit with such a batch is marked."""
    found = given.label("halved", fits=3)
    _whole_but(given, found, {}, {receipt.halved for receipt in found.receipts} - {0})
    full = [receipt for receipt in found.receipts if receipt.rows >= BATCH]
    assert all(receipt.halved == 2 for receipt in full)
    assert found.done.halved >= len(full) > 0
    assert found.done.isolated == 0


def test_rows_that_raise_or_never_fit_go_to_quarantine(given: Lab) -> None:
    """Each for its own reason; the rest of their units is labelled."""
    found = given.label("raised", faults={"$": "memory", "%": "raise"})
    _whole_but(
        given,
        found,
        {
            "$": "teacher ran out of memory on this row alone",
            "%": "teacher raised ValueError: this teacher is configured to fail",
        },
        {1},
    )
    assert 1 <= found.done.isolated <= 2


def test_rows_that_hang_or_kill_the_process_go_to_quarantine(given: Lab) -> None:
    """The process is ended when its time is over; one that dies is started a counted number of times."""
    starts = given.folder / "starts"
    found = given.label("hung", faults={"$": "hang", "%": "die"}, starts=str(starts))
    _whole_but(
        given,
        found,
        {"$": "teacher took longer than 8 s on this row", "%": "the teacher's process died on this row"},
        {1},
    )
    assert len(starts.read_text().splitlines()) <= 16


def test_a_failure_that_does_not_come_back_leaves_no_trace(given: Lab) -> None:
    """An error that happens once: the unit is labelled with care in the planned batches, and its bytes are the same."""
    found = given.label("once", faults={"$": "raise"}, once=str(given.folder / "happened"))
    assert found.done.isolated == 1
    _whole_but(given, found, {}, set())


#: By fault: what the error says, and how often the teacher may be loaded.
ALWAYS = {
    "raise": ("ValueError: this teacher is configured to fail", 2),
    "memory": ("ran out of memory", 2),
    "die": ("process died", 5),
}


@pytest.mark.parametrize("fault", drawn.one_of(*ALWAYS))
def test_a_teacher_that_fails_on_everything_is_one_error(given: Lab, fault: str) -> None:
    """It says what failed and quarantines nothing; the teacher was loaded a few times, not for ever."""
    reason, most = ALWAYS[fault]
    starts = given.folder / f"starts-{fault}"
    with pytest.raises(LabelError, match="fails on every row, 2 times of 2: .*" + reason) as caught:
        given.label(f"always-{fault}", always=fault, starts=str(starts))
    assert "\n" not in str(caught.value)
    assert 1 <= len(starts.read_text().splitlines()) <= most
    assert len(create_or_open(str(given.folder / f"always-{fault}"), given.manifest).ledger) == 0


@pytest.mark.parametrize(
    ("fault", "reason", "loads"),
    [
        ("raise", "ValueError: this teacher is configured to fail", 1),
        ("die", "died 2 times in a row while it loaded", 2),
    ],
)
def test_a_teacher_that_cannot_be_loaded_is_one_error(given: Lab, fault: str, reason: str, loads: int) -> None:
    """The error names the cause, and the teacher was loaded as often as `attempts` allows."""
    starts = given.folder / f"loads-{fault}"
    with pytest.raises(LabelError, match=f"cannot be loaded: .*{reason}") as caught:
        given.label(f"loading-{fault}", loading=fault, starts=str(starts))
    assert "\n" not in str(caught.value)
    assert len(starts.read_text().splitlines()) == loads


def test_a_teacher_that_hangs_before_it_labels_is_one_error(given: Lab) -> None:
    """Nothing can go to quarantine yet: the process is ended when its time is over, once, and the error says so."""
    starts, labels = given.folder / "starts-before", given.config.labels
    labels = labels.model_copy(
        update={
            "failures": FailuresConfig(load_seconds=10, batch_seconds=2),
            "teacher": labels.teacher.model_copy(update=_teacher(always="hang", starts=str(starts))),
        }
    )
    config = given.config.model_copy(update={"output": str(given.folder / "before"), "labels": labels})
    with pytest.raises(LabelError, match="^checking the teacher took longer than 1[0-9] s, so it was ended") as caught:
        campaign.label(config, given.snapshot)
    assert "\n" not in str(caught.value)
    assert len(starts.read_text().splitlines()) == 2, "opened, and checked once"
    assert not files.exists(str(given.folder / "before" / "labels" / "store.json"))


def test_a_campaign_says_what_became_of_the_failures(given: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    """The label stage tells of units, halved batches and reasons; a further run does not even load the teacher."""

    def configured(**arguments: Any) -> Campaign:
        labels = given.config.labels
        return given.config.model_copy(
            update={
                "labels": labels.model_copy(
                    update={"failures": FAILURES, "teacher": labels.teacher.model_copy(update=_teacher(**arguments))}
                )
            }
        )

    in_train = open_snapshot(given.snapshot).read("train", columns=["row_id"])["row_id"].to_pylist()
    sign = next(sign for sign, row in given.odd.items() if row in in_train)
    starts = given.folder / "campaign-starts"
    config = configured(faults={sign: "raise"}, starts=str(starts))
    ref = campaign.label(config, given.snapshot)
    told = capfd.readouterr().err
    assert "1 units failed and were relabelled in isolation" in told
    assert "teacher raised ValueError: this teacher is configured to fail" in told
    assert '"quarantined": 1}' in told
    assert open_label_set(ref).rows == ROWS - 1
    loads = starts.read_text()
    assert loads
    assert campaign.label(config, given.snapshot) == ref
    assert starts.read_text() == loads
