"""Check one property of a machine, a cluster or a store; each check returns one `Finding`."""

import base64
import locale
import os
import shutil
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ray_distill.cli import cluster_address
from ray_distill.config import Campaign
from ray_distill.errors import AlreadyExists, ClusterError, DistillError, StorageError
from ray_distill.redact import redact
from ray_distill.storage.proxies import opener_of, proxy_of
from ray_distill.tracking.delivery.worker import Worker
from ray_distill.tracking.sqlite_uri import sqlite_file

DISTRIBUTION = "ray-distill"
MIN_PYTHON = (3, 11)
GIB = 2**30
MIN_SHM_GIB = 1.0
MIN_MEMORY_GIB = 4.0
MIN_DISK_GIB = 5.0
TRACKING_SECONDS = 5.0
REINSTALL = "Install again with the pinned versions: pip install -c cluster/constraints.txt -e ."

Grade = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check; ``mend`` is the remedy in one sentence, empty if none is needed."""

    name: str
    ok: Grade
    found: str
    mend: str = ""


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Check that Python is new enough."""
    found = ".".join(map(str, version))
    if version >= MIN_PYTHON:
        return Finding(name="python", ok="ok", found=found)
    minimum = ".".join(map(str, MIN_PYTHON))
    return Finding(name="python", ok="fail", found=found, mend=f"Create the virtual environment with Python {minimum}.")


def check_packages() -> Finding:
    """Check that every dependency is installed in an accepted version."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    required = [item for item in required if item.marker is None or item.marker.evaluate({"extra": ""})]
    wrong = [text for item in required if (text := _wrong_version(item.name, str(item.specifier))) is not None]
    if not wrong:
        return Finding(name="packages", ok="ok", found=f"all {len(required)} in accepted versions")
    return Finding(name="packages", ok="fail", found="; ".join(wrong), mend=REINSTALL)


def _wrong_version(name: str, specifier: str) -> str | None:
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is missing, {specifier or 'any version'} is needed"
    if SpecifierSet(specifier).contains(version, prereleases=True):
        return None
    return f"{name} is {version}, {specifier} is needed"


def check_campaign(config: Campaign) -> Finding:
    """Check what a dry run does: settings, sources, and that every model can be opened."""
    from ray_distill.runtime import dry_run

    try:
        dry_run.plan(config)
    except DistillError as error:
        found = " ".join(line.strip() for line in str(error).splitlines())
        mend = "Correct the campaign's file; `ray-distill run CONFIG --dry-run` makes the same checks."
        return Finding(name="campaign", ok="fail", found=found, mend=mend)
    return Finding(name="campaign", ok="ok", found="its settings fit together, its sources and models can be opened")


def check_encoding() -> Finding:
    """Check that files and output are encoded in UTF-8."""
    found = {"files": locale.getpreferredencoding(False), "stdout": getattr(sys.stdout, "encoding", None) or "utf-8"}
    strange = {where: name for where, name in found.items() if name.lower().replace("-", "") != "utf8"}
    if not strange:
        return Finding(name="encoding", ok="ok", found="UTF-8")
    text = ", ".join(f"{where}: {name}" for where, name in strange.items())
    return Finding(name="encoding", ok="warn", found=text, mend="Set PYTHONUTF8=1, or LANG=C.UTF-8.")


def check_compiler(environment: Mapping[str, str] = os.environ) -> Finding:
    """Check for a C++ compiler, with which DeepSpeed builds the ops of some settings."""
    names = [environment["CXX"]] if environment.get("CXX") else ["g++", "c++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name, path=environment.get("PATH")))), None)
    if found:
        return Finding(name="c++ compiler", ok="ok", found=found)
    return Finding(
        name="c++ compiler",
        ok="warn",
        found=f"no {' or '.join(names)} on PATH",
        mend="Only DeepSpeed's own ops need it (fused or CPU optimizers in student.training.deepspeed): "
        "install g++ (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++).",
    )


def check_ninja(environment: Mapping[str, str] = os.environ) -> Finding:
    """Check for ninja, with which torch runs that compiler: on PATH or beside this Python."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("ninja", path=os.pathsep.join([environment.get("PATH", ""), beside]))
    if found:
        return Finding(name="ninja", ok="ok", found=found)
    return Finding(name="ninja", ok="warn", found="not on PATH", mend="Install it: pip install ninja.")


def check_device() -> Finding:
    """Check that torch can be imported, and report its device."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(name="torch device", ok="fail", found=f"torch does not import: {error}", mend=REINSTALL)
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        return Finding(name="torch device", ok="ok", found=f"cuda ({', '.join(names)}), torch {torch.__version__}")
    return Finding(name="torch device", ok="ok", found=f"cpu, torch {torch.__version__}")


def check_cores(config: Campaign | None = None) -> Finding:
    """Check that this machine has the cores that the config requires.

    This is the larger number of labelling and training.
    """
    found = _cores()
    required = _required(config, "cpus")
    if found >= required:
        return Finding(name="cpu cores", ok="ok", found=str(found))
    return Finding(
        name="cpu cores",
        ok="warn",
        found=f"{found} here, the config requires {required:g}",
        mend="Lower labels.resources or student.training.workers/cpus, or use a larger cluster (--address).",
    )


def check_gpus(config: Campaign | None = None) -> Finding:
    """Check that this machine has the GPUs that the config requires."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(name="gpus", ok="fail", found=f"cannot be counted: {error}", mend=REINSTALL)
    found = torch.cuda.device_count()
    required = _required(config, "gpus")
    if found >= required:
        return Finding(name="gpus", ok="ok", found=str(found))
    return Finding(
        name="gpus",
        ok="warn",
        found=f"{found} here, the config requires {required:g}",
        mend="Set labels.resources.gpus and student.training.gpus to 0, or use a cluster that has them.",
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _required(config: Campaign | None, kind: Literal["cpus", "gpus"]) -> float:
    """Return the CPUs or GPUs of labelling (fewest actors) or training, the larger number."""
    if config is None:
        return 0
    resources, training = config.labels.resources, config.student.training
    if kind == "cpus":
        return max(resources.actors[0] * resources.cpus, training.least_workers * training.cpus)
    return max(resources.actors[0] * resources.gpus, training.least_workers * training.gpus)


def check_memory() -> Finding:
    """Check the memory that is free now."""
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} GiB free of {memory.total / GIB:.1f}"
    if memory.available >= MIN_MEMORY_GIB * GIB:
        return Finding(name="memory", ok="ok", found=found)
    return Finding(
        name="memory",
        ok="warn",
        found=found,
        mend=f"Ray, torch and DeepSpeed need about {MIN_MEMORY_GIB:g} GiB: close other programs, or reduce batches.",
    )


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Check the shared memory, in which Ray stores its objects."""
    if not folder.is_dir():
        return Finding(name="shared memory", ok="ok", found=f"no {folder} on {sys.platform}: Ray uses files instead")
    size = shutil.disk_usage(folder).free / GIB
    if size >= MIN_SHM_GIB:
        return Finding(name="shared memory", ok="ok", found=f"{size:.1f} GiB free in {folder}")
    return Finding(
        name="shared memory",
        ok="warn",
        found=f"{size:.2f} GiB free in {folder}: Ray will use the slower disk",
        mend="In a container, start it with --shm-size=4g (Kubernetes: an emptyDir of medium Memory).",
    )


def check_disk(url: str) -> Finding:
    """Check the disk space of the campaign's output, if it is a local folder."""
    if "://" in url:
        return Finding(name="disk", ok="ok", found=f"{url} is not a local folder")
    usage = shutil.disk_usage(_existing(Path(url)))
    found = f"{usage.free / GIB:.1f} GiB free for {url}"
    if usage.free >= MIN_DISK_GIB * GIB:
        return Finding(name="disk", ok="ok", found=found)
    return Finding(
        name="disk",
        ok="warn",
        found=found,
        mend=f"Free at least {MIN_DISK_GIB:g} GiB, or set `output` to another disk or an object store.",
    )


def _existing(path: Path) -> Path:
    """Return the deepest existing folder of ``path``, because no check creates folders."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def check_token(environment: Mapping[str, str]) -> Finding:
    """Check for a token; since version 2.59, Ray's clusters refuse jobs without one."""
    try:
        token = cluster_address.find_token(environment)
    except ClusterError as error:
        return Finding(
            name="ray token",
            ok="fail",
            found=str(error),
            mend="Correct RAY_AUTH_TOKEN_PATH or the file, or set RAY_AUTH_TOKEN.",
        )
    if token:
        return Finding(name="ray token", ok="ok", found="found (its value is never shown)")
    return Finding(
        name="ray token",
        ok="warn",
        found="none: only needed to submit to a cluster",
        mend="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or create one: ray get-auth-token --generate.",
    )


def check_cluster(address: str) -> Finding:
    """Check that the cluster answers and accepts the token."""
    try:
        cluster_address.check_address(address, cluster_address.find_token(os.environ))
    except ClusterError as error:
        found, _, mend = str(error).partition(": ")
        return Finding(name="cluster", ok="fail", found=found, mend=mend)
    return Finding(name="cluster", ok="ok", found=address)


def check_store(url: str) -> Finding:
    """Check that the label store is writable and creates files exclusively."""
    from ray_distill.storage import files

    folder = url if "://" in url else str(_existing(Path(url)))
    probe = files.join(folder, f".doctor-{uuid.uuid4().hex}")
    try:
        files.create_exclusive(probe, b"first")
        try:
            files.create_exclusive(probe, b"second")
            exclusive = False
        except AlreadyExists:
            exclusive = True
        files.delete(probe)
    except StorageError as error:
        return Finding(
            name="label store",
            ok="fail",
            found=str(error),
            mend="Create the bucket or folder, and provide credentials through the environment (AWS_ENDPOINT_URL, "
            "AWS_ACCESS_KEY_ID …) or the cloud's own credential chain.",
        )
    if exclusive:
        return Finding(name="label store", ok="ok", found=f"{url} is writable, exclusive create works")
    return Finding(
        name="label store",
        ok="fail",
        found=f"{url} allows two writers to create the same object",
        mend="Run one labeller at a time on it (nothing enforces that), or move the store to local disk, "
        "S3, GCS or Azure.",
    )


def check_tracking(uri: str, *, origin: str = "") -> Finding:
    """Check that the tracking server answers, or that the folder of a database is writable.

    Args:
        uri: the tracking URI.
        origin: the setting that decided the URI, as the finding shows it.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return _check_server(uri)
    path, uri = sqlite_file(uri), redact(uri)
    if path is not None:
        folder = _existing(path.parent)
        if os.access(folder, os.W_OK):
            shown = f" ({origin})" if origin else ""
            return Finding(name="tracking", ok="ok", found=f"{uri}{shown}: {folder} is writable")
        return Finding(
            name="tracking",
            ok="fail",
            found=f"{uri}: {folder} is not writable",
            mend="Set tracking.uri to a writable place.",
        )
    return Finding(
        name="tracking",
        ok="warn",
        found=f"{uri}: not checked, because {scheme or 'a plain folder'} is unusual",
        mend="Use http(s)://… of an MLflow server, or sqlite:///….",
    )


def _check_server(uri: str) -> Finding:
    mend = "Start the server (infra/), or correct tracking.uri; until then metrics are spooled and replayed."
    if (proxy := proxy_of(uri)) is not None:
        mend = f"{proxy.advice}. {mend}"
    shown, job = redact(uri), Worker("doctor").post(lambda: _open_health(uri))
    try:
        if not job.finished(2 * TRACKING_SECONDS):  # a server that answers byte by byte has no timeout of its own
            raise TimeoutError("timed out")
        job.result()
        return Finding(name="tracking", ok="ok", found=f"{shown} answers")
    except urllib.error.HTTPError as error:
        if error.code == 403:
            mend = f"Name {urlsplit(uri).netloc.rpartition('@')[2]} in the server's --allowed-hosts."
        return Finding(name="tracking", ok="warn", found=f"{shown} answers HTTP {error.code}", mend=mend)
    except (OSError, ValueError) as error:
        reason = redact(str(getattr(error, "reason", error)))
        return Finding(name="tracking", ok="warn", found=f"{shown} does not answer: {reason}", mend=mend)


def _open_health(uri: str) -> None:
    """Open the server's health page, with the user and password of the URI."""
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(f"{parts._replace(netloc=host).geturl().rstrip('/')}/health")
    if user:
        request.add_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    with opener_of(uri).open(request, timeout=TRACKING_SECONDS):
        pass
