"""Export a trained arm as a transformers directory with a model card, and reference it."""

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ray_distill.artifacts import Calibration, Document, LabelSetRef, StudentRef
from ray_distill.errors import DistillError, TrainingError
from ray_distill.models.core.checkpoint_files import is_saved, read_facts
from ray_distill.models.core.model import Model
from ray_distill.models.io.save import save_model
from ray_distill.snapshots.labelled_rows import views_in_words
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch
from ray_distill.storage.sealed import read_document, write_sealed
from ray_distill.students.calibration.collect import Calibrate
from ray_distill.students.checkpoints.store import check_plan
from ray_distill.students.loop.best_result import Best
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.catalogue import get_task

log = logging.getLogger(__name__)

#: Name of the fact that has an arm's `Calibration`.
_CALIBRATION = "calibration"
#: Name of the fact with the counts of views in the snapshot that an arm learnt from: `SnapshotManifest.view_counts`.
VIEWS = "views"
_TRAIN_AGAIN = "delete it to train this arm again"


class ArmMarker(Document):
    """The content of ``<arm>.json``, which marks an exported arm as complete."""

    refusal: ClassVar[type[DistillError]] = TrainingError

    arm: str
    fingerprint: str
    """The student's; it lies beside this file."""
    plan: dict[str, Any]
    """The plan that a later run must have to reuse the arm."""


def export_arm(
    output: str,
    arm: str,
    model: Model,
    best: Best,
    *,
    labels: LabelSetRef,
    facts: Mapping[str, Any],
    plan: Mapping[str, Any],
    calibrate: Calibrate | None = None,
    decide: Callable[[Model], Mapping[str, Any]],
    ranks: Ranks,
) -> StudentRef:
    """Write ``<output>/<arm>/`` from the best weights, then the marker ``<output>/<arm>.json``.

    Args:
        output: folder of the campaign's students.
        arm: name of the arm.
        model: the student as it was built; its module is not changed.
        best: the result to export; its weights are needed on the first rank.
        labels: the label set it was trained from.
        facts: plain JSON for the card and the metadata.
        plan: the plan that a later run must have to reuse this arm.
        calibrate: gives the model with the best weights its temperature; None = its probabilities are kept. Like
            ``decide``, it is called on the first rank.
        decide: returns what else turns the calibrated probabilities into answers: `Model.decision`.
        ranks: the process group; the first rank writes.
    """
    ref = None
    if ranks.first:
        module = copy.deepcopy(model.module)
        module.load_state_dict(best.weights)
        trained, found = replace(model, module=module, decision={}), None
        if calibrate is not None:
            trained, found = calibrate(trained)
            log.info("%s: %s", arm, found.in_words)
            facts = {**facts, _CALIBRATION: found.to_dict()}
        decided = replace(trained, decision={**trained.decision, **decide(trained)})
        ref = _write(output, arm, decided, best, labels=labels, facts=facts, plan=plan)
    shared: StudentRef = ranks.share(ref)
    return shared


def exported_arm(
    output: str, arm: str, plan: Mapping[str, Any], *, labels: LabelSetRef, ranks: Ranks
) -> StudentRef | None:
    """Return the reference of an exported arm; None where it or its folder is absent.

    Raises:
        TrainingError: it was made from other labels or settings; the message names the difference.
    """
    marker: ArmMarker | None = ranks.share(_read_marker(marker_url(output, arm)) if ranks.first else None)
    url = files.join(output, arm)
    if marker is None or not ranks.share(ranks.first and is_saved(url)):
        return None
    if marker.arm != arm:
        raise TrainingError(f"{marker_url(output, arm)} is of the arm {marker.arm}: {_TRAIN_AGAIN}")
    check_plan(marker.plan, plan, f"the exported model {url}", folder=url)
    return StudentRef(url=url, fingerprint=marker.fingerprint, arm=arm, labels=labels)


def exported_calibration(url: str) -> Calibration | None:
    """Return how an exported arm's temperature was fitted; None if it is exported as trained.

    Raises:
        ChangedModel: the facts beside the model are missing or were changed.
    """
    found = read_facts(url).get(_CALIBRATION)
    return None if found is None else Calibration.from_dict(found, url)


def marker_url(output: str, arm: str) -> str:
    """Return the URL of the file that marks an arm as complete."""
    return files.join(output, f"{arm}.json")


def model_card(arm: str, model: Model, best: Best, facts: Mapping[str, Any]) -> str:
    """Return the model card as Markdown.

    It describes the model, its data, its settings and its validation results.
    """
    lines = [
        "---",
        "library_name: transformers",
        "tags: [ray-distill, distillation]",
        "---",
        "",
        f"# {facts['campaign']}: {arm}",
        "",
        f"A {facts['task']} model {_answers(model)}, trained by ray-distill from the stored labels of a teacher."
        if arm == "student"
        else f"A {facts['task']} model {_answers(model)}, trained by ray-distill for comparison with the student.",
        "",
        "| | |",
        "|---|---|",
    ]
    listed = [name for name in facts if name not in (_CALIBRATION, VIEWS)]
    lines += [f"| {name.replace('_', ' ')} | {_shown(facts[name])} |" for name in listed]
    lines += [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in best.score.metrics.items()]
    lines += [f"| model: {name.replace('_', ' ')} | {_shown(value)} |" for name, value in model.describe.items()]
    lines += ["", f"The weights are those after step {best.step}, the best on the validation split."]
    if VIEWS in facts:
        made = views_in_words(facts[VIEWS])
        lines += ["", f"In the snapshot, {made}; the table has the rows that this model learnt from."]
    if _CALIBRATION in facts:
        found = Calibration.from_dict(facts[_CALIBRATION])
        lines += ["", f"Calibration: {found.in_words}. Validation results are from before it."]
    return "\n".join(lines) + "\n"


def _write(
    output: str,
    arm: str,
    model: Model,
    best: Best,
    *,
    labels: LabelSetRef,
    facts: Mapping[str, Any],
    plan: Mapping[str, Any],
) -> StudentRef:
    metadata = {**facts, "arm": arm, "validation": best.score.metrics, "best_step": best.step}
    url = files.join(output, arm)
    with Scratch("export") as scratch:
        digest = save_model(model, scratch.path, card=model_card(arm, model, best, facts), metadata=metadata)
        files.delete(url)
        files.upload_folder(scratch.path, url)
    ref = StudentRef(url=url, fingerprint=digest, arm=arm, labels=labels)
    write_sealed(marker_url(output, arm), ArmMarker(arm=arm, fingerprint=digest, plan=dict(plan)).to_dict())
    return ref


def _read_marker(url: str) -> ArmMarker | None:
    if not files.exists(url):
        return None
    return read_document(ArmMarker, url, _TRAIN_AGAIN)


def _answers(model: Model) -> str:
    return get_task(model.task).answers.model.describe(model.space)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`".replace("|", "\\|")
