"""Describe a try: what is done to a copy of a finished campaign, the command that follows, and what must happen.

A try that must be refused also must change nothing: the bytes of the campaign's folder are compared before and after,
but for the tracking records and the costs of attempts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.labs.hostile.ground import Ground, Ran, Site, run

#: Files below the output that any command may change: records, costs of attempts, and locks, which have no content.
FREE = re.compile(r"(mlflow\.db.*|mlartifacts/.*|spool/.*|state/costs/.*|state/parent-.*|state/unfinished/.*|.*\.lock)")
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
    changes: bool = False
    """True where a refused command may change files, for a reason that the try names."""
    stage: str = "promote"
    """The last stage that the campaign has finished before."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables set for the command; an empty value removes the variable."""
    then: tuple[Callable[[Site], None] | tuple[str, ...], ...] = ()
    """What the message advises, in order: what is done by hand, and commands, which must end with status 0."""
    then_says: str = ""
    """Regular expression that must be found in what the last of those commands prints."""
    then_check: Callable[[Site, Ran], None] = lambda site, ran: None
    """Asserts anything more, behind the last of those commands."""
    ray: bool = False
    """Start Ray for the commands, as they do: ten seconds each."""


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
    site = ground.copy(folder, stage=attempt.stage)
    try:
        attempt.do(site)
        before = site.files()
        ran = _ran(attempt, attempt.command, site)
        _judge(attempt, site, ran, before)
        _follow(attempt, site)
    except AssertionError as error:
        return Outcome(attempt=attempt, happened=f"WRONG: {error}", right=False, seconds=0.0)
    finally:
        site.remove()
    return Outcome(attempt=attempt, happened=last_line(ran), right=True, seconds=ran.seconds)


def _ran(attempt: Try, command: Sequence[str], site: Site) -> Ran:
    environment = dict(attempt.environment)
    return run(_filled(command, site), site.root, environment, ray=attempt.ray, seconds=PATIENCE)


def _follow(attempt: Try, site: Site) -> None:
    """Do what the message advises; assert that its commands succeed."""
    last = None
    for step in attempt.then:
        if callable(step):
            step(site)
            continue
        last = _ran(attempt, step, site)
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
    assert re.search(attempt.says, text), f"/{attempt.says}/ is not in: {text[-1500:]}"
    if attempt.status and not attempt.changes:
        after = site.files()
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert not {name for name in changed if not FREE.fullmatch(name)}, f"it changed {sorted(changed)[:5]}"
    attempt.check(site, ran)


def last_line(ran: Ran) -> str:
    """Return the command's last line, shortened: its error, or the end of its result."""
    lines = [line for line in (ran.stderr if ran.status else ran.stdout or ran.stderr).splitlines() if line.strip()]
    line = lines[-1] if lines else "(nothing)"
    return line if len(line) <= 160 else f"{line[:120]} … {line[-38:]}"
