"""Point 10: least surprise on shared machines: other users, homes, temporary folders, paths and locks."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.labs.hostile.ground import Ran, Site, run
from tests.labs.hostile.tries import DECIDED, NotPossible, Try

PROMOTE = ("promote", "{config}")
#: Names of folders that tools misread: as an option, a glob, a query, a fragment, a host, another encoding, a home.
PLACES = (
    "two words",
    "ümläut–漢字😀",
    "100%25 %s {0}",
    "a#b?c=d",
    "[x]*{y,z}",
    "-rf",
    'it\'s "quoted"',
    "a:b",
    "s3:",
    "a&b;c|d$HOME",
    "~",
    "back\\slash",
    " blank ",
    "new\nline",
    "n" * 200,
    "/".join(["deep"] * 40),
)


def _promoted(site: Site, ran: Ran) -> None:
    """Assert that the promotion is complete: the same command has nothing left to do, and the alias is right."""
    again = run(["promote", str(site.config), "--verify"], site.root)
    assert again.status == 0, again.stderr[-1500:]
    assert not list(site.output.glob("spool/**/*.json")), "records wait in the spool"


def _then_promoted(site: Site, ran: Ran) -> None:
    """Assert that nothing was lost: the same command without the trouble ends well."""
    again = run(["promote", str(site.config)], site.root)
    assert again.status == 0, again.stderr[-1500:]
    _promoted(site, again)


def _mount(folder: Path) -> None:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise NotPossible("no file system can be mounted")


def _full_temporary_folder(site: Site) -> None:
    _mount(site.root / "tmp")


def _full_output(site: Site) -> None:
    """Have a full file system in place of the folder that the promotion writes its decision to."""
    _mount(site.output / "promotion")
    with suppress(OSError), (site.output / "promotion" / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


def _unmount(site: Site) -> None:
    for folder in (site.root / "tmp", site.output / "promotion"):
        if folder.is_mount():
            subprocess.run(["umount", str(folder)], check=True)


def _enough_space(site: Site, ran: Ran) -> None:
    _unmount(site)
    _then_promoted(site, ran)


def _read_only(name: str) -> Callable[[Site], None]:
    def protect(site: Site) -> None:
        (site.root / name).mkdir(exist_ok=True)
        (site.root / name).chmod(0o555)

    return protect


def _of_root(name: str, mode: int) -> Callable[[Site], None]:
    """Let a folder or file belong to root, with the permissions ``mode`` for all."""

    def give(site: Site) -> None:
        path = site.root / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.touch()
        os.chown(path, 0, 0)
        path.chmod(mode)

    return give


def _crashed_holder(site: Site) -> None:
    """Leave the lock file of a command that was killed."""
    lock = site.output / "state" / "lock"
    held = subprocess.Popen(["flock", str(lock), "sleep", "60"], start_new_session=True)
    while subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode == 0:
        pass
    os.killpg(held.pid, 9)
    held.wait()
    lock.write_text('[{"command": "train", "pid": 1, "host": "elsewhere"}]', encoding="utf-8")


def _live_holder(site: Site) -> None:
    HELD[site.root] = descriptor = os.open(site.output / "state" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _release(site: Site, ran: Ran) -> None:
    os.close(HELD.pop(site.root))
    _then_promoted(site, ran)


HELD: dict[Path, int] = {}


def _try(name: str, **more: object) -> Try:
    """Return a try to promote an evaluated campaign, which must end well."""
    given = {"command": PROMOTE, "stage": "evaluate", "status": 0, "says": "PROMOTE", "check": _promoted} | more
    return Try(point=10, name=name, **given)  # type: ignore[arg-type]


def _refused(name: str, says: str, **more: object) -> Try:
    """Return a try whose promotion is refused, and ends well without the trouble."""
    return _try(name, **({"status": 1, "says": says, "check": _then_promoted} | more))


TRIES = (
    *(_try(f"a campaign below {place!r}"[:70], place=place) for place in PLACES),
    _try("a home that is not there", environment=(("HOME", "/nonexistent"),)),
    _try("no home", environment=(("HOME", ""),)),
    _try("no home, as another user than root", environment=(("HOME", ""),), as_nobody=True),
    _try("a home that is a file", environment=(("HOME", "{config}"),)),
    _try(
        "a read-only home, as another user than root",
        do=_read_only("home"),
        environment=(("HOME", "{root}/home"),),
        as_nobody=True,
    ),
    _try("no user name", environment=(("USER", ""), ("LOGNAME", ""))),
    _try("a temporary folder that is not there", environment=(("TMPDIR", "/nonexistent"),)),
    _try("a relative temporary folder", environment=(("TMPDIR", "."),)),
    _refused(
        "a full temporary folder",
        r"(?i)no space left|full",
        do=_full_temporary_folder,
        environment=(("TMPDIR", "{root}/tmp"),),
        check=_enough_space,
        undo=_unmount,
        may_change=DECIDED,
    ),
    _refused(
        "an output whose disk is full", r"(?i)no space left|full", do=_full_output, check=_enough_space, undo=_unmount
    ),
    _try(
        "a read-only temporary folder, as another user than root",
        do=_read_only("tmp"),
        environment=(("TMPDIR", "{root}/tmp"),),
        as_nobody=True,
    ),
    _refused(
        "an output of root's, as another user",
        r"(?i)permission|not allowed|cannot write",
        do=_of_root("out", 0o755),
        as_nobody=True,
    ),
    _refused(
        "an unreadable output of root's, as another user",
        r"(?i)permission|not allowed|cannot",
        do=_of_root("out", 0o700),
        as_nobody=True,
    ),
    _refused(
        "an unreadable campaign file, as another user",
        r"(?i)permission|not allowed|cannot",
        do=_of_root("campaign.yaml", 0o600),
        as_nobody=True,
    ),
    _refused(
        "a database of root's, as another user",
        r"(?i)registry|read-?only|permission",
        do=_of_root("out/mlflow.db", 0o644),
        as_nobody=True,
        may_change=DECIDED,
    ),
    _try("a lock file of root's, as another user", do=_of_root("out/state/lock", 0o644), as_nobody=True),
    _try("the lock file of a killed command", do=_crashed_holder),
    _refused("a command at work in the output", "is at work|are at work|at work on", do=_live_holder, check=_release),
)
