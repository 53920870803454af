"""References given on a command line: as JSON, as the file that holds it, or left out for the campaign's latest."""

import json
from pathlib import Path
from typing import Any, TypeVar

from ray_distill.artifacts import Artifact, EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.runtime.core.session import absolute
from ray_distill.storage import files

A = TypeVar("A", bound=Artifact)


def snapshot(config: Campaign, text: str | None) -> SnapshotRef:
    """The snapshot given, or the campaign's latest to be labelled: what the teacher wrote, where it writes."""
    stage = "snapshot" if config.sequences is None else "write"
    return read(SnapshotRef, text) if text else SnapshotRef.from_dict(_latest(config, stage))


def prompts(config: Campaign, text: str | None) -> SnapshotRef:
    """The snapshot given, or the campaign's latest that was frozen from its source."""
    return read(SnapshotRef, text) if text else SnapshotRef.from_dict(_latest(config, "snapshot"))


def labels(config: Campaign, text: str | None) -> LabelSetRef:
    """The label set given, or the campaign's latest."""
    return read(LabelSetRef, text) if text else LabelSetRef.from_dict(_latest(config, "label")["labels"])


def students(config: Campaign, text: str | None) -> dict[str, StudentRef]:
    """The students given, by arm, or the campaign's latest."""
    if text:
        return read_students(text)
    return {arm: StudentRef.from_dict(ref) for arm, ref in _latest(config, "train").items()}


def report(config: Campaign, text: str | None) -> EvalReport:
    """The report given, or the campaign's latest."""
    return read(EvalReport, text) if text else EvalReport.from_dict(_latest(config, "evaluate")["report"])


def snapshot_to_audit(text: str) -> SnapshotRef | str:
    """A snapshot by its reference (JSON, or the file that holds it), or by the URL of its folder.

    Raises:
        ConfigError: neither JSON nor file hold a SnapshotRef.
    """
    if text.lstrip().startswith("{") or text.endswith(".json") or Path(text).is_file():
        return read(SnapshotRef, text)
    return text


def read(kind: type[A], text: str) -> A:
    """Read an artifact from its JSON, or from the file or URL that holds it.

    Raises:
        ConfigError: not an artifact of this kind.
        StorageError: the file cannot be read.
    """
    return kind.from_json(_text(text))


def read_students(text: str) -> dict[str, StudentRef]:
    """Read what the training job printed: a JSON object of students, keyed by arm; errors as `read`."""
    try:
        value = json.loads(_text(text))
    except ValueError as error:
        raise ConfigError(f"the students must be the JSON that the training job printed: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(item, dict) for item in value.values()):
        raise ConfigError("the students must be a JSON object {arm: student}, as the training job printed it")
    return {arm: StudentRef.from_dict(item) for arm, item in value.items()}


def _text(text: str) -> str:
    if text.lstrip().startswith("{"):
        return text
    try:
        return files.read_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text} is not JSON: {error}") from error


def _latest(config: Campaign, stage: str) -> Any:
    """What a stage left behind.

    Raises:
        ConfigError: it has not been run.
    """
    url = files.join(absolute(config).output_url, "state", f"{stage}.json")
    if not files.exists(url):
        raise ConfigError(
            f"the campaign {config.campaign} has not been through `{stage}` yet ({url} is missing): run "
            f"`ray-distill {stage}` first, or pass the reference"
        )
    return files.read_json(url)["result"]
