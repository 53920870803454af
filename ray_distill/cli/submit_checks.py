"""Refuse paths that a submitted job would not find, and records that would end with it.

A job starts in a temporary folder of the cluster that contains ``jobs/`` and the campaign's file alone. So outputs are
URLs or absolute paths; inputs too, except those below ``jobs/``, which are sent.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from ray_distill.config import Campaign
from ray_distill.config.paths import NamedPath, paths_of
from ray_distill.config.trials import expand
from ray_distill.errors import ConfigError
from ray_distill.redact import redact, secrets_in
from ray_distill.storage import files
from ray_distill.storage.proxies import is_loopback
from ray_distill.tracking.place import EXPERIMENT, REGISTRY, TRACKING, Place, place_of

#: Options of a job whose value is a file, unless it is JSON.
_FILES = ("--source", "--snapshot", "--labels", "--students", "--report")
#: Where a secret may stand that Ray's dashboard must not show.
_IN_FILE = "put the secret into the campaign's file, which is sent as a file, or set it on the cluster"
_ON_CLUSTER = "set it on the cluster, in its image or as a secret of Kubernetes"
#: Variables that MLflow's client reads, and that are never sent: Ray's dashboard shows what is sent.
_SECRETS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def check_submission(
    config: Campaign,
    working_dir: Path,
    arguments: Sequence[str] = (),
    *,
    address: str,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """Return the variables to send with a job, after checking all places that the job uses.

    Args:
        config: the campaign.
        working_dir: the folder that contains ``jobs/``.
        arguments: further arguments of the job.
        address: the cluster's dashboard.
        environment: variables of this machine.

    Raises:
        ConfigError: a place is not the same on the cluster, or does not outlive the job; the message names all.
    """
    place = place_of(config.tracking, campaign=config.campaign, output_url=config.output_url, environment=environment)
    wrong = [*_relative_paths(config, working_dir), *_relative_arguments(arguments)]
    if place is not None:
        wrong += _lost_records(config, place, address)
    if wrong:
        raise ConfigError(f"{len(wrong)} place(s) of a submitted job are wrong\n  " + "\n  ".join(dict.fromkeys(wrong)))
    return {} if place is None else _variables(place, environment)


def refuse_shown_secrets(
    *, overrides: Sequence[str], arguments: Sequence[str], metadata: Mapping[str, str], runtime_env: Mapping[str, Any]
) -> None:
    """Refuse secrets in what Ray's dashboard, log and job list show of a job.

    Raises:
        ConfigError: there are some; the message names each place, and where the secret may stand.
    """
    wrong = [f"--set {text.partition('=')[0]}: {_IN_FILE}" for text in overrides if secrets_in(text)]
    wrong += [f"--argument {redact(text)}: {_IN_FILE}" for text in arguments if secrets_in(text)]
    wrong += [f"--metadata {name}: leave the secret out" for name in metadata if secrets_in({name: metadata[name]})]
    wrong += [f"--runtime-env {name}: {_ON_CLUSTER}" for name in _secret_names(runtime_env)]
    if wrong:
        heading = f"{len(wrong)} secret(s) would be shown by Ray's dashboard, which has the command and the environment"
        raise ConfigError("\n  ".join([heading, *wrong]))


def _secret_names(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names below which a runtime environment has secrets."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(item, Mapping | list):
                yield from _secret_names(item, f"{prefix}{name}.")
            elif secrets_in({name: item}):
                yield f"{prefix}{name}"
    elif secrets_in(value):
        yield prefix.rstrip(".")


def _relative_paths(config: Campaign, working_dir: Path) -> Iterator[str]:
    # The default output is as relative as one that is set.
    yield from _wrong_path(
        NamedPath(field="output", value=config.output_url, role="output"), working_dir, default=config.output is None
    )
    campaigns = [config] if config.sweep is None else [config, *(trial.config for trial in expand(config))]
    for campaign in campaigns:
        for path in paths_of(campaign):
            if path.field != "output":
                yield from _wrong_path(path, working_dir)


def _wrong_path(path: NamedPath, working_dir: Path, *, default: bool = False) -> Iterator[str]:
    if not path.relative or (path.role == "input" and _is_sent(path.value, working_dir)):
        return
    found = f"{path.field}: {path.value}{' (the default)' if default else ''} is relative"
    if path.role == "output":
        yield (
            f"{found}: on the cluster it would be in the job's own folder, which is deleted with the job; set it to a "
            "URL, or to an absolute path that every node can write"
        )
    else:
        yield (
            f"{found}: only jobs/ and the campaign's file are sent with a job; set it to a URL, or to an absolute path "
            "that every node can read, or put it below jobs/"
        )


def _is_sent(value: str, working_dir: Path) -> bool:
    """Return whether a relative path is below ``jobs/``, of which all but hidden files is sent."""
    parts = PurePosixPath(value).parts
    if len(parts) < 2 or parts[0] != "jobs" or ".." in parts or any(part.startswith(".") for part in parts):
        return False
    return next(working_dir.glob(str(PurePosixPath(*parts))), None) is not None


def _relative_arguments(arguments: Sequence[str]) -> Iterator[str]:
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else "".join(arguments[at + 1 : at + 2])
        path = NamedPath(field=name, value=value, role="input")
        if name in _FILES and value and not value.lstrip().startswith("{") and path.relative:
            yield f"{name}: {value} is relative: the job does not have this file; pass a URL, an absolute path or JSON"


def _lost_records(config: Campaign, place: Place, address: str) -> Iterator[str]:
    """List why records of runs would be lost with the job, or sent to another server."""
    if not place.uri_from:
        if not files.is_local(config.output_url):
            yield (
                f"tracking.uri is not set and the output {config.output_url} is remote: the runs would be recorded in "
                "the job's working folder, which the cluster removes; set tracking.uri, or MLFLOW_TRACKING_URI, "
                "to your MLflow server, or tracking.uri to none"
            )
        return
    places = ((place.uri, place.uri_from), (place.registry_uri, place.registry_from))
    for uri, origin in (item for item in places if item[1]):
        given = config.tracking.uri if origin == "tracking.uri" else uri
        parts = urlsplit(uri)
        if given and given.startswith("sqlite:///") and not given.startswith("sqlite:////"):
            yield f"{origin}: {given} is relative: the database would be deleted with the job; use a server's address"
        elif uri.startswith("sqlite:") and origin.startswith("MLFLOW_"):
            yield f"{origin}: {uri} is a database of this machine; set tracking.uri to what the cluster can reach"
        elif is_loopback(parts.hostname or "") and not is_loopback(urlsplit(address).hostname or ""):
            yield f"{origin}: {uri} is this machine; on the cluster it is another: use the server's name in the network"
        elif parts.password and origin.startswith("MLFLOW_"):
            yield (
                f"{origin}: {redact(uri)} has a password, which Ray's dashboard would show: leave it out, "
                f"and set {' or '.join(_SECRETS)} on the cluster"
            )


def _variables(place: Place, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the job needs as well; report those that are not sent."""
    decided = {TRACKING: place.uri_from, REGISTRY: place.registry_from, EXPERIMENT: place.experiment_from}
    sent = {name: environment[name] for name, origin in decided.items() if origin == name}
    secret = [name for name in _SECRETS if environment.get(name)]
    for names, text in ((list(sent), "sent with the job"), (secret, "not sent with the job: set on the cluster")):
        if names:
            sys.stderr.write(f"{', '.join(names)}: {text}\n")
    return sent
