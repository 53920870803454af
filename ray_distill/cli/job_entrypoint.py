"""What every file in ``jobs/`` shares: its command line, its cluster, its last line.

A job's stdout ends with one JSON object, the reference or report of its stage; an error of ours ends it with
one line on stderr and exit status 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, TypeVar

from ray_distill.artifacts import Artifact, StudentRef
from ray_distill.config import Campaign, load_config
from ray_distill.errors import ConfigError, DistillError

A = TypeVar("A", bound=Artifact)

FAILED = 1
INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C ended


def parse(
    description: str | None, takes: Mapping[str, str] | None = None, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a job's command line.

    Args:
        description: the job file's docstring.
        takes: what the stage may be given beside the config: option name (without dashes) → help text.
        argv: arguments; default: the process's own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="the campaign's YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override one field, e.g. labels.signal.k=64; may be repeated",
    )
    for name, text in (takes or {}).items():
        parser.add_argument(f"--{name}", help=text)
    parser.add_argument("--json", action="store_true", help="nothing on stdout but the result; the rest on stderr")
    return parser.parse_args(argv)


def run(options: argparse.Namespace, stage: Callable[[Campaign], Any]) -> int:
    """Run a stage on the cluster that this job belongs to, print its result, return the exit status.

    ``stage`` gets the validated config; it returns an artifact, a report with ``to_json``, or a dict of artifacts.
    """
    try:
        config = load_config(options.config, tuple(options.set))
        with redirect_stdout(sys.stderr) if options.json else nullcontext(), _cluster():
            result = stage(config)
    except DistillError as error:
        _end(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        _end("stopped: run the same job again and it goes on where it was")
        return INTERRUPTED
    sys.stdout.write(to_json(result) + "\n")
    sys.stdout.flush()
    return 0


def _cluster() -> AbstractContextManager[None]:
    """The cluster that this job runs on; imported only now, so that a wrong config is reported at once."""
    from ray_distill.runtime.core.connection import connected

    return connected("auto")


def _end(text: str) -> None:
    """Write a job's last line: stdout is flushed first, because the cluster's log holds both streams."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")


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
    from ray_distill.storage.files import read_bytes

    try:
        return read_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{text} is not JSON: {error}") from error


def to_json(result: Any) -> str:
    """Return a stage's result as one line of strict JSON; a dict of artifacts keeps its keys."""
    if isinstance(result, dict):
        return json.dumps({key: json.loads(to_json(value)) for key, value in result.items()}, allow_nan=False)
    text: str = result.to_json()
    return text
