"""A finished tiny campaign, copies of it to disturb, and commands in processes with warm imports."""

import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.labs import campaign as lab

#: Stages whose end is kept, so that a try can begin behind each of them.
STAGES = ("snapshot", "label", "train", "evaluate", "promote")
#: Modules that a command needs, imported once for all commands.
PRELOADED = ["tests.labs.hostile.preloaded"]
ROWS = 300


@dataclass(frozen=True, kw_only=True)
class Site:
    """A copy of the campaign that one try may disturb."""

    root: Path
    """Has the teacher, the source, the campaign's file and its output."""

    @property
    def config(self) -> Path:
        """The campaign's file, in which paths are relative to ``root``."""
        return self.root / "campaign.yaml"

    @property
    def output(self) -> Path:
        """The campaign's output."""
        return self.root / "out"

    def change(self, **changes: Any) -> None:
        """Change the campaign's file: fields by dotted name, with ``__`` for the dots."""
        value = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        for name, change in changes.items():
            *parents, last = name.split("__")
            section = value
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = change
        lab.write_config(self.config, value)

    def state(self, stage: str) -> Any:
        """Return the stored result of a stage."""
        return json.loads((self.output / "state" / f"{stage}.json").read_text(encoding="utf-8"))["result"]

    def one(self, pattern: str) -> Path:
        """Return the first file below the output that matches a glob."""
        return min(self.output.glob(pattern))

    def files(self) -> dict[str, str]:
        """Return the digest of every file below the output, by name."""
        found = sorted(path for path in self.output.rglob("*") if path.is_file())
        return {
            str(path.relative_to(self.output)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            for path in found
        }

    def remove(self) -> None:
        """Delete the copy."""
        for path in (self.root, *self.root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):
                    path.chmod(0o700)
        shutil.rmtree(self.root, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The campaign, as it was behind each stage."""

    folder: Path

    def copy(self, folder: str, *, stage: str = "promote") -> Site:
        """Copy the campaign, as it was behind a stage, to a folder which must not exist yet."""
        root = Path(folder)
        shutil.copytree(self.folder / stage, root, symlinks=True)
        return Site(root=root)


def prepare(folder: Path) -> Ground:
    """Run the campaign stage by stage, about forty seconds, and keep a copy behind each.

    Every copy lies where the campaign does not: what it refers to outside itself is missing.
    """
    from ray_distill.cli import main
    from ray_distill.runtime.core import connection

    root = folder / "made"
    root.mkdir(parents=True)
    lab.write_teacher(root / "teacher")
    lab.write_rows(root / "rows.jsonl", lab.annotated(lab.texts(ROWS, seed=3), train_labels=60))
    lab.write_config(root / "campaign.yaml", config(root))
    kept, here = folder / "kept", Path.cwd()
    os.chdir(root)
    try:
        with connection.connected():
            for stage in STAGES:
                status = main([stage, "campaign.yaml"])
                assert status == 0, f"{stage} of the campaign ended with {status}"
                shutil.copytree(root, kept / stage)
    finally:
        os.chdir(here)
    shutil.rmtree(root)
    return Ground(folder=kept)


def config(root: Path) -> dict[str, Any]:
    """Return the campaign: few rows, few steps, every path relative."""
    value = lab.config_of(root, root / "rows.jsonl", {"model": "teacher"}, student__training__epochs=2)
    value["snapshot"]["source"] = "rows.jsonl"
    value["output"] = "out"
    value["gate"]["limits"] = {"accuracy": {"min": 0.0}, "ece": None}
    return value


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak: int
    """Bytes of memory that the command had at most, beyond those of a process with warm imports."""

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events among the lines of its stderr."""
        return lab.events_of(self.stderr)


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    *,
    ray: bool = False,
    user: int | None = None,
    seconds: float = 240.0,
) -> Ran:
    """Run ``ray-distill`` with these arguments in a folder, in a fresh process forked from one with warm imports.

    Args:
        arguments: of the command.
        folder: where it is run.
        environment: variables to set; an empty value removes the variable.
        ray: start Ray, as the command does; without it the command has what needs none, and evaluates by itself.
        user: number of the user who runs it; None for this one.
        seconds: most that it may take; then it is killed, and the status is None's: an AssertionError.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    out, err, used = (folder.parent / f"{uuid.uuid4().hex}.{name}" for name in ("stdout", "stderr", "memory"))
    started = time.monotonic()
    process = context.Process(
        target=_command,
        args=(list(arguments), str(folder), dict(environment or {}), ray, user, (str(out), str(err), str(used))),
    )
    process.start()
    process.join(seconds)
    if stuck := process.is_alive():
        process.kill()
        process.join()
    found = [path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in (out, err, used)]
    for path in (out, err, used):
        path.unlink(missing_ok=True)
    assert not stuck, f"`ray-distill {' '.join(arguments)}` had not ended after {seconds:g} s: {found[1][-1000:]}"
    assert process.exitcode is not None
    seconds, peak = time.monotonic() - started, int(found[2] or 0)
    return Ran(status=process.exitcode, stdout=found[0], stderr=found[1], seconds=seconds, peak=peak)


def _command(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    ray: bool,
    user: int | None,
    places: tuple[str, str, str],
) -> None:
    """Run the command in this process, with its streams and its memory in files; end with its exit status."""
    import tempfile

    from ray_distill.cli import main
    from ray_distill.runtime.core import connection
    from ray_distill.runtime.stages import evaluate

    before, (out, err, used) = _memory("VmRSS"), places
    for stream, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, stream)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(os.fdopen(os.dup(at), "wb", 0), "utf-8", write_through=True) for at in (1, 2)
    )
    for name, value in environment.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    tempfile.tempdir = None
    if user is not None:
        Path(used).touch()
        os.chown(used, user, -1)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.chdir(folder)
    if not ray:  # it takes ten seconds, and the models of this campaign are judged in one
        connection.connected = lambda address=None: nullcontext()
        evaluate.on_cluster = _here
    with redirect_stdout(sys.stdout), redirect_stderr(sys.stderr):
        try:
            status = main(arguments)
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    Path(used).write_text(str(_memory("VmHWM") - before), encoding="utf-8")
    os._exit(status)


def _memory(name: str) -> int:
    """Return a number of bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def _here(function: Any, *arguments: Any, **named: Any) -> Any:
    """Call a function that `on_cluster` would run as a task."""
    own = {"cpus", "gpus", "what", "options", "watch"}
    return function(*arguments, **{name: value for name, value in named.items() if name not in own})
