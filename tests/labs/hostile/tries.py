"""Describe a try: what is done to a copy of a finished campaign, the command that follows, and what must happen.

A try that must be refused also must change nothing: the bytes of the campaign's folder are compared before and after,
but for the tracking records and the costs of attempts.
"""

import os
import pwd
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.labs.hostile.ground import Ground, Ran, Site, run

#: Files below the output that any command may change: records, costs of attempts, and locks, which have no content.
FREE = re.compile(r"(mlflow\.db.*|mlartifacts/.*|spool/.*|state/costs/.*|state/parent-.*|state/unfinished/.*|.*\.lock)")
#: Files that a promotion writes before its record is refused.
DECIDED = r"promotion/.*|evaluations/.*/report\.html|state/promote\.json"
#: Seconds that a command may take before it counts as stuck.
PATIENCE = 240.0


@dataclass(frozen=True, kw_only=True)
class Try:
    """One try."""

    point: int
    """Number of the promise that it tries to break; see `POINTS`."""
    name: str
    do: Callable[[Site], None] = lambda site: None
    """Disturbs the copy of the campaign."""
    command: tuple[str, ...]
    """The command that follows; ``{config}`` is the campaign's file, ``{root}`` the folder of the copy, ``{report}``
    its report."""
    status: int = 1
    """Exit status that is right."""
    says: str = ""
    """Regular expression that must be found in stdout or stderr."""
    check: Callable[[Site, Ran], None] = lambda site, ran: None
    """Asserts anything more."""
    may_change: str = ""
    """Regular expression of further files that a refused command may change."""
    stage: str = "promote"
    """The last stage that the campaign has finished before."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables set for the command, ``{root}`` as in ``command``; an empty value removes the variable."""
    place: str = ""
    """Path of the copy below the folder of the try."""
    as_nobody: bool = False
    """True where the command runs as another user than root, who owns the copy."""
    undo: Callable[[Site], None] = lambda site: None
    """Puts back what ``do`` has changed outside of the copy."""
    then: tuple[Callable[[Site], None] | tuple[str, ...], ...] = ()
    """What the message advises, in order: what is done by hand, and commands, which must end with status 0."""
    then_says: str = ""
    """Regular expression that must be found in what the last of those commands prints."""
    then_check: Callable[[Site, Ran], None] = lambda site, ran: None
    """Asserts anything more, behind the last of those commands."""
    ray: bool = False
    """Start Ray for the commands, as they do: ten seconds each."""


class NotPossible(Exception):
    """This machine does not allow what the try does."""


#: What each point promises.
POINTS = {
    1: "what was judged is what is promoted",
    2: "no dead ends",
    3: "registry and alias follow the chain",
    4: "tracking loses nothing and holds nobody up",
    5: "no secret leaves the process",
    6: "audit deletes nothing by mistake",
    7: "wrong numbers and names are refused by name",
    8: "a moved output refers to nothing outside itself",
    9: "no litter, no huge cells",
    10: "least surprise on shared machines",
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a try."""

    attempt: Try
    happened: str
    """The command's last line, shortened; or why the outcome is wrong."""
    right: bool
    seconds: float


def carry_out(attempt: Try, ground: Ground, folder: str) -> Outcome:
    """Disturb a fresh copy of the campaign, run the command, and compare what happened with what is right."""
    try:
        with _folder(attempt, folder) as place:
            site = ground.copy(place, stage=attempt.stage)
            try:
                ran = _disturb_and_run(attempt, site)
            finally:
                attempt.undo(site)
                site.remove()
    except NotPossible as error:
        return Outcome(attempt=attempt, happened=f"not possible here: {error}", right=True, seconds=0.0)
    except AssertionError as error:
        return Outcome(attempt=attempt, happened=f"WRONG: {error}", right=False, seconds=0.0)
    except Exception as error:  # noqa: BLE001 - a step of the try failed: the others go on
        return Outcome(attempt=attempt, happened=f"WRONG: the try itself failed: {error!r}", right=False, seconds=0.0)
    return Outcome(attempt=attempt, happened=last_line(ran), right=True, seconds=ran.seconds)


@contextmanager
def _folder(attempt: Try, folder: str) -> Iterator[str]:
    """Yield the path of the copy; another user can reach it where the try has one."""
    with ExitStack() as stack:
        if attempt.as_nobody:
            folder = stack.enter_context(TemporaryDirectory(prefix="ray-distill-hostile-", ignore_cleanup_errors=True))
            Path(folder).chmod(0o755)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield str(Path(folder) / (attempt.place or "site"))


def _disturb_and_run(attempt: Try, site: Site) -> Ran:
    user = _give_to_nobody(site) if attempt.as_nobody else None
    attempt.do(site)
    before = site.files()
    ran = _ran(attempt, attempt.command, site, user=user)
    _judge(attempt, site, ran, before)
    _follow(attempt, site, user=user)
    return ran


def _give_to_nobody(site: Site) -> int:
    """Let the user nobody own the copy; return the user's number."""
    if os.getuid() != 0:
        raise NotPossible("only root can run a command as another user")
    closed = [path for path in Path(os.__file__).parents if not path.stat().st_mode & 0o001]
    if closed:
        raise NotPossible(f"another user has no access to this Python, below {closed[0]}")
    user = pwd.getpwnam("nobody").pw_uid
    for path in (site.root, *site.root.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)
    return user


def _ran(attempt: Try, command: Sequence[str], site: Site, *, user: int | None) -> Ran:
    names, values = [name for name, _ in attempt.environment], [value for _, value in attempt.environment]
    environment = dict(zip(names, _filled(values, site), strict=True))
    return run(_filled(command, site), site.root, environment, ray=attempt.ray, user=user, seconds=PATIENCE)


def _follow(attempt: Try, site: Site, *, user: int | None) -> None:
    """Do what the message advises; assert that its commands succeed."""
    last = None
    for step in attempt.then:
        if callable(step):
            step(site)
            continue
        last = _ran(attempt, step, site, user=user)
        text = last.stdout + last.stderr
        assert last.status == 0, f"advised, but it ended with {last.status}: {' '.join(step)}: {text[-1500:]}"
    if last is not None:
        assert re.search(attempt.then_says, last.stdout + last.stderr), (
            f"/{attempt.then_says}/ is not in: {text[-1500:]}"
        )
        attempt.then_check(site, last)


def _filled(command: Sequence[str], site: Site) -> list[str]:
    reports = sorted(site.output.glob("evaluations/*/report.json"))
    values = {"{config}": site.config, "{root}": site.root, "{report}": reports[0] if reports else ""}
    return [_replaced(part, values) for part in command]


def _replaced(text: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def _judge(attempt: Try, site: Site, ran: Ran, before: dict[str, str]) -> None:
    """Assert status, message, no traceback, and that a refusal changed nothing."""
    text = ran.stdout + ran.stderr
    assert ran.status == attempt.status, f"exit status {ran.status}, expected {attempt.status}: {text[-1500:]}"
    assert "Traceback (most recent call last)" not in text, f"a traceback: {text[-1500:]}"
    assert "that it does not expect" not in text, f"the last resort: {text[-1500:]}"
    assert re.search(attempt.says, text), f"/{attempt.says}/ is not in: {text[-1500:]}"
    if attempt.status:
        after = site.files()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        assert not (wrong := [name for name in changed if not _free(name, attempt)]), f"it changed {wrong[:5]}"
    attempt.check(site, ran)


def _free(name: str, attempt: Try) -> bool:
    return bool(FREE.fullmatch(name) or re.fullmatch(attempt.may_change, name))


def last_line(ran: Ran) -> str:
    """Return the command's last line, shortened: its error, or the end of its result."""
    lines = [line for line in (ran.stderr if ran.status else ran.stdout or ran.stderr).splitlines() if line.strip()]
    line = lines[-1] if lines else "(nothing)"
    return line if len(line) <= 160 else f"{line[:120]} … {line[-38:]}"
