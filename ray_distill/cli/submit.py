"""Submit a job file to a Ray cluster, follow its log, and return its exit status.

Only a copy of ``jobs/`` and of the campaign's config is sent, never the rest of the folder. This module imports ray
after the cluster has answered, so that a wrong address or token is reported at once.
"""

import asyncio
import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import ray_distill
from ray_distill.cli import INTERRUPTED
from ray_distill.cli.campaign_file.load import load_campaign, refuse_unknown_names
from ray_distill.cli.cluster_address import check_address, find_token, headers_of
from ray_distill.cli.submit_checks import check_submission, refuse_shown_secrets
from ray_distill.config import Campaign
from ray_distill.errors import ClusterError
from ray_distill.redact import redact
from ray_distill.storage.proxies import keep_loopback_direct
from ray_distill.storage.scratch import Scratch

#: Text of the error while a head's agent is starting; how long to wait for the agent, and the seconds between tries.
NO_AGENT, AGENT_SECONDS, RETRY_SECONDS = "No available agent", 60.0, 2.0
MAX_STAGED_BYTES = 64 * 1024 * 1024
FINISHED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


def submit(
    *,
    job: str,
    config_path: str | Path,
    address: str,
    overrides: Sequence[str] = (),
    arguments: Sequence[str] = (),
    working_dir: str | Path = ".",
    runtime_env: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    token: str | None = None,
    ship_package: bool = False,
    follow: bool = True,
    as_json: bool = False,
) -> int:
    """Run ``jobs/<job>.py`` on a cluster and return its exit status; 0 means success.

    Args:
        job: name of a file in ``<working_dir>/jobs`` without its suffix, e.g. ``pipeline``.
        config_path: the campaign's YAML file; validated on this machine before anything is sent.
        address: the cluster's dashboard, ``http://HEAD:8265``.
        overrides: dotted overrides, passed to the job as ``--set``.
        arguments: further arguments of the job, e.g. ``("--snapshot", "{…}")``.
        working_dir: the folder that contains ``jobs/``.
        runtime_env: Ray runtime environment (``env_vars``, ``pip`` …) to merge with ours.
        metadata: labels of the job in Ray's dashboard, in addition to campaign, job and config fingerprint.
        token: the cluster's token; default: that of `find_token`.
        ship_package: send this ``ray_distill`` with the job, for clusters whose image does not contain it.
        follow: copy the job's log to stdout until it ends; otherwise return 0 once it is accepted.
        as_json: print only ``{"job_id", "status", "exit_code"}`` on stdout, at the end, and the log on stderr; a job
            that is not followed to its end has no exit code.

    Raises:
        ConfigError: the config is invalid, or names a place that the job does not have or that is deleted with it.
        ClusterError: no cluster answers at the address, the token is missing or refused, the job file does not exist
            or is too large, or the connection was lost (the job itself continues).
    """
    config = load_campaign(config_path, overrides)
    refuse_unknown_names(config)
    refuse_shown_secrets(
        overrides=overrides, arguments=arguments, metadata=metadata or {}, runtime_env=runtime_env or {}
    )
    keep_loopback_direct()
    environment = {**os.environ, **(runtime_env or {}).get("env_vars", {})}
    variables = check_submission(config, Path(working_dir), arguments, address=address, environment=environment)
    token = token or find_token(os.environ)
    check_address(address, token)
    with _staged(job, Path(config_path), Path(working_dir)) as folder:
        client = _client(address, token)
        job_id = _send(
            client,
            entrypoint=entrypoint_of(job, Path(config_path).name, overrides, arguments),
            runtime_env=_runtime_env(runtime_env or {}, folder, ship_package=ship_package, variables=variables),
            metadata={**_labels(config, job), **(metadata or {})},
        )
    _print_error(f"submitted {job_id}: {job} of {config.campaign} on {address}")
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        status, exit_code = _follow(client, job_id, address) if follow else ("PENDING", 0)
    if not follow:
        _print_error(_follow_commands(job_id, address))
    if as_json:
        ended = exit_code if status in FINISHED else None
        sys.stdout.write(json.dumps({"job_id": job_id, "status": status, "exit_code": ended}) + "\n")
        sys.stdout.flush()
    return exit_code


def entrypoint_of(job: str, config_name: str, overrides: Sequence[str], arguments: Sequence[str]) -> str:
    """Return the shell command that the cluster runs, every argument quoted."""
    sets = [part for override in overrides for part in ("--set", override)]
    return shlex.join(["python", f"jobs/{job}.py", "--config", config_name, *sets, *arguments])


@contextmanager
def _staged(job: str, config: Path, working_dir: Path) -> Iterator[Path]:
    """Copy ``jobs/`` and the config into a temporary folder for the time of the upload."""
    source = working_dir / "jobs"
    if not (source / f"{job}.py").is_file():
        known = ", ".join(sorted(path.stem for path in source.glob("*.py"))) or "none"
        raise ClusterError(
            f"no job {job!r} in {source.resolve()} (found: {known}): run from the project's checkout, "
            "or name its folder as the working dir"
        )
    _refuse_large(source)
    with Scratch("submit") as scratch:
        shutil.copytree(source, scratch.path / "jobs", ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.copyfile(config, scratch.path / config.name)
        yield scratch.path


def _refuse_large(folder: Path) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_STAGED_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise ClusterError(
            f"{folder} contains {total / 2**20:.0f} MiB, at most {MAX_STAGED_BYTES // 2**20} MiB are sent with a job; "
            f"the largest file is {largest}: move data and models elsewhere and name their URLs in the config"
        )


def _runtime_env(
    requested: Mapping[str, Any], folder: Path, *, ship_package: bool, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    if "working_dir" in requested:
        raise ClusterError("runtime_env must not set working_dir: the staged jobs/ folder is the job's working dir")
    result = {**requested, "working_dir": str(folder)}
    if variables or requested.get("env_vars"):
        result["env_vars"] = {**(variables or {}), **requested.get("env_vars", {})}
    if ship_package:
        package = str(Path(ray_distill.__file__).parent)
        result["py_modules"] = [*requested.get("py_modules", ()), package]
        result["excludes"] = [*requested.get("excludes", ()), "**/__pycache__/"]
    return result


def _labels(config: Campaign, job: str) -> dict[str, str]:
    return {"campaign": config.campaign, "job": job, "config_fingerprint": config.fingerprint}


def _client(address: str, token: str | None) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in ("dashboard_sdk", "job.sdk"):  # their INFO lines would separate the job's log from its error
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address, headers=headers_of(token))
    except (RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"{address} answers, but not as a Ray dashboard's Jobs API ({type(error).__name__}: {error}): check host "
            "and port, and that it runs this machine's version of Ray"
        ) from error


def _send(client: Any, **request: Any) -> str:
    """Submit the job; retry while a cluster that has just started has no agent for it yet."""
    give_up = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            job_id: str = client.submit_job(**request)
            return job_id
        except (RuntimeError, ValueError, OSError) as error:
            if NO_AGENT not in str(error) or time.monotonic() > give_up:
                raise ClusterError(f"the cluster did not accept the job: {error}") from error
            time.sleep(RETRY_SECONDS)


def _follow(client: Any, job_id: str, address: str) -> tuple[str, int]:
    """Copy the job's log until it ends; return its status and the exit status of this command."""
    try:
        last_line = asyncio.run(_tail(client, job_id))
        info = _final(client, job_id)
    except KeyboardInterrupt:
        _print_error(f"\nno longer following: {job_id} continues. {_follow_commands(job_id, address)}")
        return "RUNNING", INTERRUPTED
    except (RuntimeError, OSError) as error:
        raise ClusterError(
            f"lost the connection to {job_id} ({error}); it may continue. {_follow_commands(job_id, address)}"
        ) from error
    return str(info.status.value), _report(job_id, info, last_line)


async def _tail(client: Any, job_id: str) -> str:
    """Copy the log to stdout until the job ends; return its last line that is not blank."""
    last = ""
    unfinished = ""
    async for text in client.tail_job_logs(job_id):
        sys.stdout.write(redact(text))
        sys.stdout.flush()
        lines = (unfinished + text).split("\n")
        unfinished = lines.pop()
        last = next((line.strip() for line in reversed(lines) if line.strip()), last)
    return unfinished.strip() or last


def _final(client: Any, job_id: str, patience_seconds: float = 60.0) -> Any:
    """Wait for the job's final record, because its log closes before its status is final."""
    deadline = time.monotonic() + patience_seconds
    while True:
        info = client.get_job_info(job_id)
        if str(info.status.value) in FINISHED:
            return info
        if time.monotonic() > deadline:
            raise RuntimeError(f"its log ended, but its status is still {info.status.value}")
        time.sleep(0.2)


def _report(job_id: str, info: Any, last_line: str) -> int:
    """Return the exit status; if it is not 0, print the reason as the last line."""
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        _print_error(f"error: {job_id} was stopped")
        return 1
    code = info.driver_exit_code
    reason = last_line if code is not None and last_line else (info.message or "no reason was given").split("\n")[0]
    exit_code = "" if code is None else f" with exit code {code}"
    _print_error(f"error: {job_id} failed{exit_code}: {reason.removeprefix('error: ')}")
    # A shell reports a process killed by signal n as 128 + n, Ray as -n.
    return 1 if code is None else 128 - code if code < 0 else code or 1


def _follow_commands(job_id: str, address: str) -> str:
    where = f"--address {address} {job_id}"
    return f"Follow it: ray job logs --follow {where} · stop it: ray job stop {where}"


def _print_error(text: str) -> None:
    """Print a line to stderr, after flushing stdout."""
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
