"""Point 2: what a message advises is done, to the letter, and the next command succeeds.

`tests.labs.advice` lists the messages, each with the try or the test that follows it.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.report.assemble import content_fingerprint
from ray_distill.storage.sealed import SEAL, sealed
from tests.labs.hostile.artifacts import teacher_swapped
from tests.labs.hostile.damage import Damage, cut, damaged, empty, flip, remove, student_swapped
from tests.labs.hostile.ground import Ran, Site, run
from tests.labs.hostile.tries import DECIDED, Try

RUN, EVALUATE, PROMOTE = ("run", "{config}"), ("evaluate", "{config}"), ("promote", "{config}")
LABEL, TRAIN, SNAPSHOT = ("label", "{config}"), ("train", "{config}"), ("snapshot", "{config}")
VERIFY = (*PROMOTE, "--verify")
AUDIT = ("audit", "{root}/out/labels")
#: A store beside the campaign's, as messages propose it.
NEW_STORE = ("--set", "labels.store=out/labels-2")
LOG = "labels/log/*.json"
CHAIN = "promotion/decisions"
STUDENT = "students/*/student"


def stashed(pattern: str, damage: Damage) -> Callable[[Site], None]:
    """Return a disturbance of the first file or folder that matches; `restored` undoes it."""

    def do(site: Site) -> None:
        path = site.one(pattern)
        stash = site.root / "copies" / path.relative_to(site.root)
        stash.parent.mkdir(parents=True)
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, stash)
        damage(path)

    return do


def restored(site: Site) -> None:
    """Put back what `stashed` has copied."""
    shutil.copytree(site.root / "copies", site.root, dirs_exist_ok=True)


def dropped(path: Path) -> None:
    """Delete a folder."""
    shutil.rmtree(path)


def deleted(pattern: str) -> Callable[[Site], None]:
    """Return a step: delete the first file or folder that matches."""

    def do(site: Site) -> None:
        path = site.one(pattern)
        dropped(path) if path.is_dir() else path.unlink()

    return do


def moved_away(pattern: str) -> Callable[[Site], None]:
    """Return a step: move a folder aside."""

    def do(site: Site) -> None:
        shutil.move(site.one(pattern), site.root / "aside")

    return do


def all_of(*steps: Callable[[Site], None]) -> Callable[[Site], None]:
    """Return a step of several."""

    def do(site: Site) -> None:
        for step in steps:
            step(site)

    return do


def paid_for(site: Site) -> dict[str, str]:
    """Return the digests of labels and models, which cost time and money."""
    kept = re.compile(r"(labels/(distributions|hidden|log|quarantine)|snapshots/.*/data/|students/.*\.safetensors)")
    return {name: digest for name, digest in site.files().items() if kept.match(name)}


def judged_by_registry(site: Site) -> None:
    """Put the registry's copy of the student in the place of its folder."""
    weights = min(site.output.glob("mlartifacts/**/model.safetensors"))
    target = site.one("students/*/student.json").with_suffix("")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(weights.parent, target)


def retrained_otherwise(site: Site) -> None:
    """Have the student's folder trained again, with another result, as a GPU's sums may have."""
    student_swapped(site)
    path = site.output / "state" / "train.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["result"]["student"]["fingerprint"] = value["result"]["baseline_hard_labels"]["fingerprint"]
    path.write_text(json.dumps(sealed({name: item for name, item in value.items() if name != SEAL})), encoding="utf-8")


def without_predictions(site: Site) -> None:
    """Make the stored report one of a version that kept no digests of its files."""
    path = site.output / "state" / "evaluate.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    report = EvalReport.from_dict(value["result"]["report"]).with_changes(files={})
    value["result"]["report"] = report.with_changes(fingerprint=content_fingerprint(report)).to_dict()
    path.write_text(json.dumps(sealed({name: item for name, item in value.items() if name != SEAL})), encoding="utf-8")


def alias_deleted(site: Site) -> None:
    """Delete the alias, as MLflow's page does."""
    with closing(sqlite3.connect(site.output / "mlflow.db")) as database, database:
        database.execute("DELETE FROM registered_model_aliases")


def best_trial_run(site: Site) -> None:
    """Run the campaign of the best trial."""
    ran = run(["run", str(site.one("**/best.yaml"))], site.root, ray=True)
    assert ran.status == 0, ran.stderr[-1500:]
    assert re.search("PROMOTE|HOLD|REJECT", ran.stdout), ran.stdout


def report_copied(site: Site) -> None:
    """Copy the report to a place outside its output."""
    shutil.copy2(site.one("evaluations/*/report.json"), site.root / "mine.json")


def foreign_pin(site: Site) -> None:
    """Put a file among the pins of the chain."""
    pin = site.one(f"{CHAIN}/pins/*.json")
    shutil.copy2(pin, pin.with_name("note.json"))


def judged_beside_champion(site: Site) -> None:
    """Train another student, and judge it beside the champion."""
    site.change(student__training__epochs=1)
    for command in ("train", "evaluate"):
        ran = run([command, "campaign.yaml"], site.root, ray=True)
        assert ran.status == 0, ran.stderr


def another_promoted(site: Site) -> None:
    """Train, judge and promote another student; only the first one's report stays."""
    first = set(site.output.glob("evaluations/*"))
    for command in ("train", "evaluate", "promote"):
        ran = run([command, "campaign.yaml", "--set", "student.training.epochs=1"], site.root, ray=True)
        assert ran.status == 0, ran.stderr
    for other in set(site.output.glob("evaluations/*")) - first:
        shutil.rmtree(other)


def forecast_cut(site: Site) -> None:
    """Leave half a forecast where `plan` keeps it."""
    (site.output / "state" / "plan.json").write_text('{"stages": [', encoding="utf-8")


def labelled_elsewise(site: Site) -> None:
    """Label the same rows into the campaign's store, by a campaign of another output."""
    for command in ("snapshot", "label"):
        to = ["--set", "output=other", "--set", "labels.store=out/labels"]
        ran = run([command, "campaign.yaml", *to], site.root, ray=True)
        assert ran.status == 0, ran.stderr


def many_orphans(site: Site) -> None:
    """Put many old files that no record names among the labels."""
    unit = site.one("labels/distributions/*/*.parquet")
    for number in range(200):
        orphan = unit.with_name(f"orphan{number:03d}.parquet")
        orphan.write_bytes(b"left")
        os.utime(orphan, (0, 0))


def all_results_cut(site: Site) -> None:
    """Cut every file in which a command keeps a result."""
    for pattern in ("state/**/*.json", "kept/**/*.json", "students/*/*.json"):
        for path in site.output.glob(pattern):
            cut(path)


def named_ones_deleted(site: Site) -> None:
    """Run the campaign, delete the file that it names, and run it again, until it succeeds; nothing is paid twice."""
    before, named = paid_for(site), set[str]()
    for _ in range(40):
        ran = run(["run", "campaign.yaml"], site.root, ray=True)
        if ran.status == 0:
            break
        found = re.search(r"(/\S+\.json) is damaged: .*; delete it", ran.stderr)
        assert found and found[1] not in named, f"{sorted(named)}; then: {ran.stderr[-1500:]}"
        named.add(found[1])
        Path(found[1]).unlink()
    assert ran.status == 0, ran.stderr[-1500:]
    after = paid_for(site)
    assert {name: after.get(name) for name in before} == before, "labels or models were made again"
    assert len(named) >= 6, sorted(named)


def as_before(site: Site, ran: Ran) -> None:
    """Assert that nothing was judged or decided again."""
    assert "already judged" in ran.stderr and "already decided" in ran.stderr


def champion_is(count: int) -> Callable[[Site, Ran], None]:
    """Return a check: the chain has so many decisions."""

    def check(site: Site, ran: Ran) -> None:
        assert len(list(site.output.glob(f"{CHAIN}/log/*.json"))) == count

    return check


def _restores() -> Sequence[Try]:
    """Return tries that restore what is damaged: the same command then succeeds."""
    cases: tuple[tuple[str, str, Damage, tuple[str, ...], str, str], ...] = (
        ("the student's weights", f"{STUDENT}/model.safetensors", flip, EVALUATE, "train", "Restore them"),
        ("the student's folder", STUDENT, dropped, EVALUATE, "train", "Restore them"),
        ("the student's folder", STUDENT, dropped, PROMOTE, "evaluate", "Restore them"),
        ("a shard of the snapshot", "snapshots/*/data/test-*.parquet", flip, EVALUATE, "train", "restore it"),
        ("a shard of the snapshot", "snapshots/*/data/test-*.parquet", remove, EVALUATE, "train", "restore it"),
        ("the snapshot's manifest", "snapshots/*/snapshot.json", flip, EVALUATE, "train", "restore it"),
        ("the snapshot's manifest", "snapshots/*/snapshot.json", cut, EVALUATE, "train", "restore it"),
        ("the predictions", "evaluations/*/predictions.parquet", flip, PROMOTE, "evaluate", "restore it"),
        ("the predictions", "evaluations/*/predictions.parquet", remove, PROMOTE, "evaluate", "restore it"),
        ("an entry of the chain", f"{CHAIN}/log/*.json", flip, PROMOTE, "promote", "restore"),
        ("an entry of the chain", f"{CHAIN}/log/*.json", remove, VERIFY, "promote", "restore"),
        (
            "a label file",
            "labels/distributions/*/*.parquet",
            flip,
            AUDIT,
            "label",
            "restore what is missing or corrupt",
        ),
        (
            "a label file",
            "labels/distributions/*/*.parquet",
            remove,
            AUDIT,
            "label",
            "restore what is missing or corrupt",
        ),
        ("the store's manifest", "labels/store.json", flip, AUDIT, "label", "restore what is missing or corrupt"),
        ("the store's manifest", "labels/store.json", cut, AUDIT, "label", "restore what is missing or corrupt"),
        ("the store's manifest", "labels/store.json", empty, EVALUATE, "train", "restore it"),
        ("a record of the store's log", LOG, flip, AUDIT, "label", "restore what is missing or corrupt"),
        ("a record of the store's log", LOG, cut, AUDIT, "label", "restore what is missing or corrupt"),
        ("the store's log", "labels/log", dropped, AUDIT, "label", "restore the"),
    )
    return [
        Try(
            point=2,
            name=f"advice: {what}: {damage.__name__}; {command[0]} refuses; restored",
            do=stashed(pattern, damage),
            command=command,
            says=says,
            stage=stage,
            then=(restored, command),
        )
        for what, pattern, damage, command, stage, says in cases
    ]


def _deletes() -> Sequence[Try]:
    """Return tries that delete what the message names: the command then succeeds, and keeps the rest."""
    return (
        *(
            Try(
                point=2,
                name=f"advice: the result of {stage} is cut; run refuses; deleted",
                do=damaged(f"state/{stage}.json", cut),
                command=RUN,
                says=rf"{stage}\.json.*delete it, and the stage is run again",
                then=(deleted(f"state/{stage}.json"), RUN),
                then_says="PROMOTE",
                then_check=champion_is(decisions),
            )
            # A new report, with other latencies, is decided about anew; a decision of the chain is found again.
            for stage, decisions in (("evaluate", 2), ("promote", 1))
        ),
        Try(
            point=2,
            name="advice: the result of evaluate is cut; promote refuses; deleted, evaluated",
            do=damaged("state/evaluate.json", cut),
            command=PROMOTE,
            says=r"evaluate\.json.*delete it",
            stage="evaluate",
            then=(deleted("state/evaluate.json"), EVALUATE, PROMOTE),
            then_says="PROMOTE",
        ),
        Try(
            point=2,
            name="advice: the parent run's id is cut; promote refuses; deleted",
            do=damaged("state/parent-*.json", cut),
            command=PROMOTE,
            says=r"parent-\w+\.json.*delete it, and a new run is opened",
            stage="evaluate",
            then=(deleted("state/parent-*.json"), PROMOTE),
            then_says="PROMOTE",
        ),
        Try(
            point=2,
            name="advice: the cost of an attempt is cut; promote refuses; deleted",
            do=damaged("state/costs/*.json", cut),
            command=PROMOTE,
            says=r"costs/.*\.json.*delete it, and the cost of that attempt is not counted",
            stage="evaluate",
            may_change=DECIDED,  # the decision is recorded before the page, which states the costs
            then=(deleted("state/costs/*.json"), PROMOTE),
            then_says="PROMOTE",
            then_check=champion_is(1),
        ),
        Try(
            point=2,
            name="advice: the forecast is cut; promote refuses; deleted",
            do=forecast_cut,
            command=PROMOTE,
            says=r"plan\.json.*delete it, and the forecast is not compared with what followed",
            stage="evaluate",
            may_change=DECIDED,  # as above
            then=(deleted("state/plan.json"), PROMOTE),
            then_says="PROMOTE",
            then_check=champion_is(1),
        ),
        Try(
            point=2,
            name="advice: a foreign file among the chain's pins; promote refuses; deleted",
            do=foreign_pin,
            command=PROMOTE,
            says=r"note\.json: this is not the name of a pin; restore or delete it",
            then=(deleted(f"{CHAIN}/pins/note.json"), PROMOTE),
            then_says="already decided",
        ),
        Try(
            point=2,
            name="advice: every kept result is cut; run refuses; each named file deleted",
            do=all_results_cut,
            command=RUN,
            says="is damaged: .*delete it",
            then=(named_ones_deleted, RUN),
            then_says="already decided",
            ray=True,
        ),
    )


def _again() -> Sequence[Try]:
    """Return tries that run what the message names."""
    return (
        *(
            Try(
                point=2,
                name=f"advice: {command[0]} before {needed}",
                do=deleted(f"state/{needed}.json"),
                command=command,
                says=f"run `ray-distill {needed}` first",
                stage=stage,
                then=((needed, "{config}"), command),
                ray=ray,
            )
            for command, needed, stage, ray in (
                (PROMOTE, "evaluate", "evaluate", False),
                (EVALUATE, "train", "train", True),
            )
        ),
        Try(
            point=2,
            name="advice: a report without the digests of its files; promote refuses; evaluated",
            do=without_predictions,
            command=PROMOTE,
            says="has no predictions.parquet; run `ray-distill evaluate`: it judges again",
            stage="evaluate",
            then=(EVALUATE, PROMOTE),
            then_says="PROMOTE",
        ),
        *(
            Try(
                point=2,
                name=f"advice: the predictions: {damage.__name__}; promote refuses; evaluated",
                do=damaged("evaluations/*/predictions.parquet", damage),
                command=PROMOTE,
                says=r"predictions\.parquet.*run `ray-distill evaluate`: it judges again",
                stage="evaluate",
                then=(EVALUATE, PROMOTE),
                then_says="PROMOTE",
            )
            for damage in (flip, remove)
        ),
        Try(
            point=2,
            name="advice: the chain altered, no copy; promote refuses; moved away, evaluated",
            do=damaged(f"{CHAIN}/log/*.json", flip),
            command=PROMOTE,
            says="move the folder .*decisions away to begin a chain without a champion",
            then=(moved_away(CHAIN), EVALUATE, PROMOTE),
            then_says="PROMOTE",
            then_check=champion_is(1),
        ),
        Try(
            point=2,
            name="advice: the alias names a version, the chain has no champion; --verify refuses; promoted",
            do=moved_away(CHAIN),
            command=VERIFY,
            says="has promoted no student: `ray-distill promote` points it at one that passes",
            then=(PROMOTE, VERIFY),
            then_check=champion_is(1),
        ),
        Try(
            point=2,
            name="advice: the alias names a version, the chain has no champion; --verify refuses; alias deleted",
            do=moved_away(CHAIN),
            command=VERIFY,
            says="else delete the alias in the registry",
            then=(alias_deleted, VERIFY),
        ),
        Try(
            point=2,
            name="advice: a report whose champion is not in the chain; promote refuses; evaluated again",
            do=all_of(judged_beside_champion, moved_away(CHAIN)),
            command=PROMOTE,
            says="which is not in the decision chain: evaluate again",
            then=(EVALUATE, PROMOTE),
            then_says="PROMOTE",
            ray=True,
        ),
        Try(
            point=2,
            name="advice: a report beside no champion, though there is one; promote refuses; evaluated again",
            do=another_promoted,
            command=(*PROMOTE, "--report", "{report}"),
            says="the champion is now .*: evaluate again, then promote",
            stage="evaluate",
            then=(TRAIN, EVALUATE, PROMOTE),
            then_check=champion_is(2),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the student swapped; promote refuses; put back from the registry",
            do=student_swapped,
            command=(*PROMOTE, "--set", "gate.limits.accuracy.min=0.1"),
            says="Restore them from a copy or, if it was registered, from the registry",
            then=(judged_by_registry, (*PROMOTE, "--set", "gate.limits.accuracy.min=0.1"), RUN),
        ),
        Try(
            point=2,
            name="advice: the student's weights lost; evaluate refuses; folder deleted, trained",
            do=damaged(f"{STUDENT}/model.safetensors", remove),
            command=EVALUATE,
            says="delete the folder and run `ray-distill train` to train it again",
            stage="train",
            then=(deleted(STUDENT), TRAIN, EVALUATE),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the champion's weights lost; promote refuses; folder deleted, trained",
            do=damaged(f"{STUDENT}/model.safetensors", remove),
            command=(*PROMOTE, "--set", "gate.limits.accuracy.min=0.1"),
            says="delete the folder and run `ray-distill train` to train it again",
            then=(deleted(STUDENT), TRAIN, EVALUATE, PROMOTE),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the champion trained again with another result; evaluate refuses; chain moved away",
            do=retrained_otherwise,
            command=EVALUATE,
            says="the champion of the decision chain: .*If that makes another model, move the folder .* away",
            then=(moved_away(CHAIN), EVALUATE, PROMOTE),
            then_says="PROMOTE",
            then_check=champion_is(1),
        ),
        Try(
            point=2,
            name="advice: the snapshot damaged; evaluate refuses; deleted and taken again",
            do=damaged("snapshots/*/snapshot.json", cut),
            command=EVALUATE,
            says="delete the folder of the snapshot and take it again",
            stage="train",
            then=(deleted("snapshots/*"), SNAPSHOT, EVALUATE),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the store's log lost, no copy; label refuses; labelled into a new store",
            do=deleted("labels/log"),
            command=LABEL,
            says="Without a copy, set labels.store to a new folder, such as .*labels-2, and label again",
            stage="label",
            then=((*LABEL, *NEW_STORE), (*TRAIN, *NEW_STORE)),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the teacher swapped; label refuses; labelled into a new store",
            do=teacher_swapped,
            command=LABEL,
            says="need a new labels.store|Set labels.store to another URL, such as .*labels-2",
            stage="label",
            then=((*LABEL, *NEW_STORE, "--set", "labels.check.limits={}"),),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the store deleted; train refuses; labelled again",
            do=deleted("labels"),
            command=TRAIN,
            says="there is no label store here .*label a snapshot first",
            stage="label",
            then=(LABEL, TRAIN),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the store deleted and filled elsewise; train refuses; labelled again",
            do=all_of(deleted("labels"), labelled_elsewise),
            command=TRAIN,
            says="or label again",
            stage="label",
            then=(LABEL, TRAIN),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: a promoted student trained anew; train refuses; another setting",
            command=(*TRAIN, "--no-resume"),
            says="change the seed or another setting instead",
            then=((*TRAIN, "--no-resume", "--set", "student.training.epochs=1"),),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: the best trial of a sweep is proposed; run",
            do=lambda site: site.change(sweep={"grid": {"student.training.learning_rate": [0.001, 0.01]}}),
            command=("sweep", "{config}"),
            status=0,
            says=r"next +ray-distill run \S+/best\.yaml",
            then=(best_trial_run, RUN),
            then_says="PROMOTE|HOLD|REJECT",
            ray=True,
        ),
        Try(
            point=2,
            name="advice: relabel before label; labelled",
            command=("relabel", "{config}"),
            says="run `ray-distill label` .* first",
            stage="snapshot",
            then=(LABEL, ("relabel", "{config}")),
            ray=True,
        ),
        Try(
            point=2,
            name="advice: a copy of a report outside its output; given by the original",
            do=report_copied,
            command=(*PROMOTE, "--report", "{root}/mine.json"),
            says=r"give the file that ends with /evaluations/\w+/report\.json",
            stage="evaluate",
            then=((*PROMOTE, "--report", "{report}"),),
            then_says="PROMOTE",
        ),
        Try(
            point=2,
            name="advice: many files that no record names; --clean refuses; --clean --yes",
            do=many_orphans,
            command=(*AUDIT, "--clean"),
            says="If the log is whole, `--clean --yes` deletes them",
            stage="label",
            then=((*AUDIT, "--clean", "--yes"), AUDIT),
            then_says="orphans +0",
        ),
    )


TRIES = (*_restores(), *_deletes(), *_again())
