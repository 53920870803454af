"""Points 1 and 6: files that change behind a stage are found by the next command that opens them."""

import json
import shutil

from ray_distill.storage.sealed import SEAL, sealed
from ray_distill.testing.models import write_tiny_text_model
from tests.labs import campaign as lab
from tests.labs.hostile.damage import DAMAGES, damaged, student_swapped
from tests.labs.hostile.ground import Ran, Site
from tests.labs.hostile.tries import Try


def teacher_swapped(site: Site) -> None:
    """Put another teacher of the same shape into the teacher's place."""
    shutil.rmtree(site.root / "teacher")
    write_tiny_text_model(site.root / "teacher", list(lab.CLASSES), seed=77, initializer_range=0.1)


def _better_report(site: Site) -> None:
    """Make the stored report of the evaluation a better one."""
    path = site.output / "state" / "evaluate.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["result"]["report"]["models"]["student"]["metrics"]["accuracy"] |= {"value": 0.99, "low": 0.98, "high": 1.0}
    path.write_text(json.dumps(sealed({name: item for name, item in value.items() if name != SEAL})), encoding="utf-8")


def _foreign_report(site: Site) -> None:
    """Put the student's fingerprint of another student into the report."""
    path = site.output / "state" / "evaluate.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    value["result"]["report"]["student"]["fingerprint"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(sealed({name: item for name, item in value.items() if name != SEAL})), encoding="utf-8")


def _edited_result(site: Site) -> None:
    """Change a number in the stored result of the evaluation, as an editor or a bad disk does."""
    path = site.output / "state" / "evaluate.json"
    before = path.read_text(encoding="utf-8")
    after = before.replace('"value": 0.', '"value": 1.', 1)
    assert after != before
    path.write_text(after, encoding="utf-8")


def _judged_again(site: Site, ran: Ran) -> None:
    assert "judged again" in ran.stderr and site.state("evaluate")["report"]["models"]["student"]["metrics"]


def _log_lost(site: Site) -> None:
    for path in (site.output / "labels" / "log").iterdir():
        path.unlink()


def _labels_stay(site: Site, ran: Ran) -> None:
    assert len(list(site.output.glob("labels/distributions/*/*.parquet"))) == len(
        list(site.output.glob("labels/hidden.2/*/*.parquet"))
    )


TRIES = (
    *(
        Try(
            point=1,
            name=f"the student's {file}: {how}, then {command}",
            do=damaged(f"students/*/student/{file}", damage),
            command=(command, "{config}"),
            says="is not the student that was trained|student is not a checkpoint",
            stage={"evaluate": "train", "promote": "evaluate"}[command],
        )
        for file in ("model.safetensors", "config.json", "tokenizer.json", "ray_distill.json")
        for how, damage in DAMAGES.items()
        for command in ("evaluate", "promote")
    ),
    *(
        Try(
            point=1,
            name=f"the student swapped with its baseline, then {command}",
            do=student_swapped,
            command=(command, "{config}"),
            says="is not the student that was trained.*Restore them",
            stage=stage,
        )
        for command, stage in (("evaluate", "train"), ("promote", "evaluate"))
    ),
    Try(
        point=1,
        name="the champion's folder swapped, and a second promotion of the same student",
        do=student_swapped,
        command=("promote", "{config}", "--set", "gate.limits.accuracy.min=0.1"),
        says="is not the student that was trained",
        stage="promote",
    ),
    Try(
        point=1,
        name="the teacher swapped between labelling and evaluation",
        do=teacher_swapped,
        command=("evaluate", "{config}"),
        says="labels.teacher.*is not the teacher that made the labels.*Restore its files",
        stage="train",
    ),
    *(
        Try(
            point=1,
            name=f"the teacher's weights: {how}, then evaluate",
            do=lambda site, damage=damage: damage(site.root / "teacher" / "model.safetensors"),  # type: ignore[misc]
            command=("evaluate", "{config}"),
            says="teacher",
            stage="train",
        )
        for how, damage in DAMAGES.items()
    ),
    *(
        Try(
            point=1,
            name=f"a shard of the snapshot's test split: {how}, then evaluate",
            do=damaged("snapshots/*/data/test-*.parquet", damage),
            command=("evaluate", "{config}"),
            says=r"test-00000\.parquet",
            stage="train",
        )
        for how, damage in DAMAGES.items()
    ),
    *(
        Try(
            point=1,
            name=f"the snapshot's manifest: {how}, then evaluate",
            do=damaged("snapshots/*/snapshot.json", damage),
            command=("evaluate", "{config}"),
            says=r"snapshot\.json",
            stage="train",
        )
        for how, damage in DAMAGES.items()
    ),
    Try(
        point=1,
        name="a better number in the report, then promote",
        do=_better_report,
        command=("promote", "{config}"),
        says="was changed after the evaluation.*run `ray-distill evaluate`",
        stage="evaluate",
    ),
    Try(
        point=1,
        name="a better number in the report, then evaluate, which judges again",
        do=_better_report,
        command=("evaluate", "{config}"),
        status=0,
        says="was changed after it was made",
        check=_judged_again,
        stage="evaluate",
    ),
    *(
        Try(
            point=1,
            name=f"another number in the result of the evaluation, then {command}",
            do=_edited_result,
            command=(command, "{config}"),
            says=r"evaluate\.json is damaged.*delete it",
            stage="evaluate",
        )
        for command in ("evaluate", "promote")
    ),
    *(
        Try(
            point=1,
            name=f"the predictions beside the report: {how}, then promote",
            do=damaged("evaluations/*/predictions.parquet", damage),
            command=("promote", "{config}"),
            says=r"predictions\.parquet.*run `ray-distill evaluate`",
            stage="evaluate",
        )
        for how, damage in DAMAGES.items()
    ),
    Try(
        point=1,
        name="another student's fingerprint in the report, then promote",
        do=_foreign_report,
        command=("promote", "{config}"),
        says="was changed after the evaluation",
        stage="evaluate",
    ),
    *(
        Try(
            point=6,
            name=f"a label file: {how}, then audit",
            do=damaged("labels/distributions/*/*.parquet", damage),
            command=("audit", "{root}/out/labels"),
            says=r"distributions/\w+/\w+\.parquet",
        )
        for how, damage in DAMAGES.items()
    ),
    *(
        Try(
            point=6,
            name=f"the store's log lost, then audit{' --clean' * clean}{' --yes' * yes}",
            do=_log_lost,
            command=("audit", "{root}/out/labels", *(["--clean"] if clean else []), *(["--yes"] if yes else [])),
            says="log",
            check=_labels_stay,
        )
        for clean, yes in ((False, False), (True, False), (True, True))
    ),
    *(
        Try(
            point=6,
            name=f"the record of the store's log: {how}, then audit --clean --yes",
            do=damaged("labels/log/*.json", damage),
            command=("audit", "{root}/out/labels", "--clean", "--yes"),
            says=r"000000000000\.json|log",
            check=_labels_stay,
        )
        for how, damage in DAMAGES.items()
    ),
    *(
        Try(
            point=6,
            name=f"the store's manifest: {how}, then audit --clean --yes",
            do=damaged("labels/store.json", damage),
            command=("audit", "{root}/out/labels", "--clean", "--yes"),
            says=r"store\.json",
            check=_labels_stay,
        )
        for how, damage in DAMAGES.items()
    ),
    Try(
        point=6,
        name="audit --clean of a sound store",
        command=("audit", "{root}/out/labels", "--clean"),
        status=0,
        check=_labels_stay,
    ),
)
