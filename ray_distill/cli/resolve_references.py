"""Resolve references given as JSON or as a file; by default the campaign's latest result."""

import json
from pathlib import Path
from typing import Any, TypeVar

from ray_distill.artifacts import Artifact, EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.runtime.core.session import absolute, last_result
from ray_distill.storage import files
from ray_distill.storage.portable import WITHIN, located

A = TypeVar("A", bound=Artifact)


def snapshot(config: Campaign, text: str | None) -> SnapshotRef:
    """Return the given snapshot, or the campaign's latest one to label.

    If the campaign has a section ``sequences``, that is the snapshot of the texts that the teacher wrote.
    """
    stage = "snapshot" if config.sequences is None else "write"
    return read(SnapshotRef, text) if text else SnapshotRef.from_dict(_latest(config, stage))


def prompts(config: Campaign, text: str | None) -> SnapshotRef:
    """Return the given snapshot, or the latest one that was frozen from the campaign's source."""
    return read(SnapshotRef, text) if text else SnapshotRef.from_dict(_latest(config, "snapshot"))


def labels(config: Campaign, text: str | None) -> LabelSetRef:
    """Return the given label set, or the campaign's latest."""
    return read(LabelSetRef, text) if text else LabelSetRef.from_dict(_latest(config, "label")["labels"])


def students(config: Campaign, text: str | None) -> dict[str, StudentRef]:
    """Return the given students by arm, or the campaign's latest."""
    if text:
        return read_students(text)
    return {arm: StudentRef.from_dict(ref) for arm, ref in _latest(config, "train").items()}


def report(config: Campaign, text: str | None) -> EvalReport:
    """Return the given report, or the campaign's latest."""
    return read(EvalReport, text) if text else EvalReport.from_dict(_latest(config, "evaluate")["report"])


def snapshot_to_audit(text: str) -> SnapshotRef | str:
    """Return a snapshot's reference, from JSON or a file, or the text if it is a folder's URL.

    Raises:
        ConfigError: the JSON or the file is not a SnapshotRef.
    """
    if text.lstrip().startswith("{") or text.endswith(".json") or Path(text).is_file():
        return read(SnapshotRef, text)
    return text


def read(kind: type[A], text: str) -> A:
    """Read an artifact from its JSON, or from a file or URL with that JSON.

    Raises:
        ConfigError: the JSON is not an artifact of this kind.
        StorageError: the file cannot be read.
    """
    if text.lstrip().startswith("{"):
        return kind.from_json(text)
    return kind.from_dict(_located(_parsed(text, f"a {kind.__name__} must be JSON"), files.absolute(text)))


def _located(value: Any, url: str) -> Any:
    """Return a document of an output, read from ``url``, with the URLs that it refers to.

    Raises:
        ConfigError: it is a copy that lies outside the output.
    """
    own = value.get("url") if isinstance(value, dict) else None
    if not isinstance(own, str) or not own.startswith(WITHIN):
        return value
    below = "/" + own.removeprefix(WITHIN)
    if not url.endswith(below):
        raise ConfigError(f"{url} is a copy outside its campaign's output: give the file that ends with {below}")
    return located(value, url.removesuffix(below))


def _parsed(text: str, what: str) -> Any:
    """Return the JSON of a text or file; ``what`` begins the error of one that is not JSON."""
    try:
        return json.loads(_text(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {error}") from error


def read_students(text: str) -> dict[str, StudentRef]:
    """Read the training job's output, a JSON object of students by arm; errors as in `read`."""
    value = _parsed(text, "the students must be the JSON that the training job printed")
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
    """Read the result of a stage's last run.

    Raises:
        ConfigError: the stage has not been run.
    """
    output = absolute(config).output_url
    found = last_result(output, stage)
    if found is None:
        url = files.join(output, "state", f"{stage}.json")
        raise ConfigError(
            f"the campaign {config.campaign} has no result of `{stage}` yet ({url} is missing): run "
            f"`ray-distill {stage}` first, or pass the reference"
        )
    return found["result"]
