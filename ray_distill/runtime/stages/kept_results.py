"""Keep results of `plan` and of the teacher's checks, so that later commands use them.

    <output>/kept/calibration/<key>/found.json, fits/…   a store's form, fitted to the teacher's answers
    <output>/kept/checks/<key>.json                      the teacher's metrics on the calibration split
    <output>/kept/trust/<key>.json                       the teacher's numbers on newer traffic, before `relabel` stores

A key covers everything that decides its result, so that none is used for another teacher, snapshot or setting.
Fitted heads are kept in the same way, in the label store's ``heads`` (`models.heads.fit_head`).
"""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from ray_distill.artifacts import SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.config.identity import identity
from ray_distill.errors import DamagedFile
from ray_distill.evaluation.measures.teacher_trust import TeacherTrust
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.format.fitted_arrays import read_fits, write_fits
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.labelling.calibrate_store import Found
from ray_distill.runtime.labelling.teacher_quality import TeacherCheck
from ray_distill.storage import files
from ray_distill.storage.sealed import read_sealed, write_sealed

_CHECK = TypeAdapter(TeacherCheck)
#: Way out where a kept result is damaged.
_MADE_AGAIN = "delete it, and it is made again"


def kept_calibration(config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest) -> Found | None:
    """Return the calibration of a new store on a snapshot; None if it is not kept."""
    folder = _calibration(config, snapshot, manifest)
    url = files.join(folder, "found.json")
    if not files.exists(url):
        return None
    found = _kept(url, _calibration_key(snapshot, manifest))
    return Found(fits=read_fits(folder, found["fits"]), measured=found["measured"], range_rows=found["range_rows"])


def keep_calibration(config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest, found: Found) -> None:
    """Store the calibration of a new store on a snapshot."""
    folder = _calibration(config, snapshot, manifest)
    value = {"fits": write_fits(folder, found.fits), "measured": found.measured, "range_rows": found.range_rows}
    _keep(files.join(folder, "found.json"), _calibration_key(snapshot, manifest), value)


def _calibration(config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest) -> str:
    key = fingerprint(_calibration_key(snapshot, manifest))
    return files.join(config.output_url, "kept", "calibration", key)


def _calibration_key(snapshot: SnapshotRef, manifest: StoreManifest) -> dict[str, Any]:
    return {"manifest": manifest.fingerprint, "snapshot": snapshot.fingerprint}


def kept_check(config: Campaign, check: dict[str, Any]) -> TeacherCheck | None:
    """Return the result of a check with this `check_key`; None if it is not kept."""
    url = _check(config, check)
    return _CHECK.validate_python(_kept(url, check)) if files.exists(url) else None


def keep_check(config: Campaign, check: dict[str, Any], found: TeacherCheck) -> None:
    """Store the result of a check under its `check_key`."""
    _keep(_check(config, check), check, json.loads(_CHECK.dump_json(found)))


def check_key(config: Campaign, snapshot: SnapshotRef, teacher: str, champion: StudentRef | None) -> dict[str, Any]:
    """Return everything that decides a check of the teacher.

    Args:
        config: the campaign; the limits of its check do not count, because they judge the result.
        snapshot: the snapshot with the calibration split.
        teacher: fingerprint of the teacher with its head.
        champion: the model in production, if there is one.
    """
    return {
        "snapshot": snapshot.fingerprint,
        "teacher": teacher,
        "champion": champion and champion.fingerprint,
        "evaluation": identity(config.evaluation),
        "resources": identity(config.labels.resources),
        "task": config.task,
        "seed": config.seed,
    }


def kept_trust(config: Campaign, key: dict[str, Any]) -> TeacherTrust | None:
    """Return a check on newer traffic with this `trust_key`; None if it is not kept."""
    url = _trust(config, key)
    return TeacherTrust.from_dict(_kept(url, key), url) if files.exists(url) else None


def keep_trust(config: Campaign, key: dict[str, Any], found: TeacherTrust) -> None:
    """Store the result of a check on newer traffic under its `trust_key`."""
    _keep(_trust(config, key), key, found.to_dict())


def trust_key(
    config: Campaign,
    reference: SnapshotRef,
    current: SnapshotRef,
    *,
    units: Sequence[WorkUnit],
    teacher: str,
    champion: StudentRef | None,
) -> dict[str, Any]:
    """Return everything that decides a check of the teacher on newer traffic.

    Args:
        config: the campaign; what ``drift`` tolerates counts, because the result has the verdict.
        reference: snapshot of the labels in use.
        current: snapshot of newer traffic.
        units: the rows that the check chooses from.
        teacher: fingerprint of the teacher with its head.
        champion: the model in production, if there is one.
    """
    return {
        **check_key(config, current, teacher, champion),
        "reference": reference.fingerprint,
        "units": fingerprint([unit.unit_id for unit in units]),
        "drift": identity(config.drift),
    }


def _trust(config: Campaign, key: dict[str, Any]) -> str:
    return files.join(config.output_url, "kept", "trust", f"{fingerprint(key)}.json")


def _check(config: Campaign, check: dict[str, Any]) -> str:
    return files.join(config.output_url, "kept", "checks", f"{fingerprint(check)}.json")


def _keep(url: str, key: dict[str, Any], found: dict[str, Any]) -> None:
    """Store a result with its key."""
    write_sealed(url, {"key": fingerprint(key), **found})


def _kept(url: str, key: dict[str, Any]) -> dict[str, Any]:
    """Return a result that `_keep` stored.

    Raises:
        DamagedFile: it was changed, or has another key.
    """
    value = read_sealed(url, _MADE_AGAIN)
    if value.pop("key", None) != fingerprint(key):
        raise DamagedFile(f"{url} is not the result that is kept there; {_MADE_AGAIN}")
    return value
