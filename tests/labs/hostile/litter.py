"""Point 9: what killed commands left is removed and nothing else, and no source fills the memory."""

import fcntl
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.labs.hostile.ground import Ran, Site
from tests.labs.hostile.tries import Try

MB = 1 << 20
#: Bytes that a command may take, beyond a process with warm imports, whatever its source decodes to.
MOST = 1024 * MB
#: Bytes that the huge sources below decode to, at least.
DECODED = 1000 * MB
FOLDER = "ray-distill-scratch-model-abcd1234"
PLAN = "plan-" + "0123456789abcdef" * 2
PART = ".report.json." + "0123456789abcdef" * 2 + ".part"

Change = Callable[[Site], None]
Check = Callable[[Site, Ran], None]


def _old(path: Path, *, seconds: int = 120) -> Path:
    """Make a folder with a file, as old as a remnant is."""
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"x")
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))
    return path


def _remnant(site: Site) -> None:
    _old(site.root / "tmp" / FOLDER)


def _closed_remnant(site: Site) -> None:
    folder = _old(site.root / "tmp" / FOLDER)
    (folder / "closed").mkdir()
    (folder / "closed" / "file").write_bytes(b"x")
    (folder / "closed").chmod(0)
    folder.chmod(0)
    os.utime(folder, (0, 0))


def _linking_remnant(site: Site) -> None:
    folder = _old(site.root / "tmp" / FOLDER)
    _old(site.root / "precious")
    (folder / "link").symlink_to(site.root / "precious")
    os.utime(folder, (0, 0))


def _live(site: Site) -> None:
    """Lock the folder as a live process does; the lock goes with this process's descriptor, closed by `_stays`."""
    folder = _old(site.root / "tmp" / FOLDER)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (site.root / "descriptor").write_text(str(descriptor), encoding="utf-8")


def _released(check: Check) -> Check:
    def after(site: Site, ran: Ran) -> None:
        os.close(int((site.root / "descriptor").read_text(encoding="utf-8")))
        check(site, ran)

    return after


def _young(site: Site) -> None:
    _old(site.root / "tmp" / FOLDER, seconds=0)


def _named_alike(site: Site) -> None:
    _old(site.root / "tmp" / "ray-distill-scratch-mine")
    _old(site.root / "precious")
    (site.root / "tmp" / FOLDER).symlink_to(site.root / "precious")
    (site.root / "tmp" / FOLDER.replace("1234", "1235")).write_bytes(b"x")


def _of_another_user(site: Site) -> None:
    folder = _old(site.root / "tmp" / FOLDER)
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
        os.utime(folder, (0, 0))
    else:
        folder.rmdir()


def _unfinished(site: Site) -> None:
    (site.root / "tmp").mkdir()
    for folder in ("state", "evaluations/x", "promotion"):
        (site.output / folder).mkdir(parents=True, exist_ok=True)
        (site.output / folder / PART).write_bytes(b"half")
    (site.output / "state" / "progress").mkdir(exist_ok=True)
    (site.output / "state" / "progress" / "train.json").write_text("{", encoding="utf-8")
    _old(site.output / PLAN)


def _own_files(site: Site) -> None:
    (site.root / "tmp").mkdir()
    _old(site.output / "plan-mine")
    _old(site.root / "precious")
    (site.output / PLAN).symlink_to(site.root / "precious")
    (site.output / "state" / ".mine.part").write_bytes(b"x")
    (site.output / "state" / "mine.part").write_bytes(b"x")


def _left_lock(site: Site) -> None:
    (site.root / "tmp").mkdir()
    holder = {"command": "run", "process": 1, "host": "gone", "since": "2026-01-01T00:00:00+00:00"}
    (site.output / "state" / "lock").write_text(json.dumps([holder]), encoding="utf-8")


def _held_lock(site: Site) -> None:
    _old(site.output / PLAN)
    descriptor = os.open(site.output / "state" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (site.root / "descriptor").write_text(str(descriptor), encoding="utf-8")


def _half_snapshot(site: Site) -> None:
    (site.root / "tmp").mkdir()
    manifest = site.one("snapshots/*/snapshot.json")
    shutil.copy(manifest, site.root / "before.json")
    manifest.unlink()
    shard = site.one("snapshots/*/data/train-*.parquet")
    shard.write_bytes(shard.read_bytes()[:100])
    site.one("state/snapshot.json").unlink()


def _whole_snapshot(site: Site, ran: Ran) -> None:
    before = json.loads((site.root / "before.json").read_text(encoding="utf-8"))
    after = json.loads(site.one("snapshots/*/snapshot.json").read_text(encoding="utf-8"))
    assert before["shards"] == after["shards"], "the snapshot that was written again has other shards"


def _gone(*names: str) -> Check:
    def check(site: Site, ran: Ran) -> None:
        left = [name for name in names if os.path.lexists(site.root / name)]
        assert not left, f"left: {left}"
        assert not (site.root / "precious").exists() or (site.root / "precious" / "weights").exists()

    return check


def _stays(*names: str) -> Check:
    def check(site: Site, ran: Ran) -> None:
        lost = [name for name in names if not os.path.lexists(site.root / name)]
        assert not lost, f"removed: {lost}"

    return check


def _repeated(path: Path) -> None:
    """Write a text of 10 MiB once, and 100 rows that have it."""
    _dictionary(path, ["x" * (10 * MB)], 100)


def _dictionary(path: Path, values: list[str], rows: int) -> None:
    places = pa.array(np.resize(np.arange(len(values), dtype=np.int32), rows))
    column = pa.DictionaryArray.from_arrays(places, pa.array(values))
    pq.write_table(
        pa.table({"text": column}), path, store_schema=False, dictionary_pagesize_limit=1 << 30, compression="zstd"
    )


def _prefixed(path: Path) -> None:
    _plain(path, ["x" * (4 * MB)] * 256, column_encoding={"text": "DELTA_BYTE_ARRAY"})


def _plain(path: Path, texts: list[str], **settings: object) -> None:
    column = pa.array(texts, pa.large_string())
    pq.write_table(pa.table({"text": column}), path, use_dictionary=False, compression="zstd", **settings)


def _nested(path: Path) -> None:
    content = pa.DictionaryArray.from_arrays(pa.array([0] * 128, pa.int32()), pa.array(["x" * (8 * MB)]))
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 128), content], ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array(range(129), pa.int32()), turns)
    pq.write_table(
        pa.table({"text": rows}), path, store_schema=False, dictionary_pagesize_limit=1 << 30, compression="zstd"
    )


def _packed(head: bytes, body: bytes, tail: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with gzip.open(path, "wb") as file:
            file.write(head)
            for _ in range(DECODED // MB):
                file.write(body * (MB // len(body)))
            file.write(tail)

    return write


def _many_files(path: Path) -> None:
    path.mkdir()
    for number in range(10):
        _dictionary(path / f"{number}.parquet", ["x" * MB], 100)


def _good_rows() -> list[str]:
    return [f"row {number} of the source" for number in range(400)]


def _among_good(path: Path) -> None:
    _plain(path, [*_good_rows(), "x" * (100 * MB)])


def _repeated_among_good(path: Path) -> None:
    _dictionary(path, [*_good_rows(), "x" * (17 * MB)], 401)


def _line_among_good(path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in _good_rows():
            file.write(json.dumps({"text": row}) + "\n")
        file.write('{"text": "' + "x" * (100 * MB) + '"}\n')


def _field_among_good(path: Path) -> None:
    path.write_text("text\n" + "\n".join(_good_rows()) + "\n" + "x" * (100 * MB) + "\n", encoding="utf-8")


#: Source, what writes it, and what its refusal says.
REFUSED: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("repeated.parquet", _repeated, "the rows of its source take more than 268,435,456 bytes"),
    ("prefixed.parquet", _prefixed, "the rows of its source take more than 268,435,456 bytes"),
    ("nested.parquet", _nested, "the rows of its source take more than 268,435,456 bytes"),
    ("short.parquet", lambda path: _dictionary(path, ["a", "b"], 16_000_000), "take more than 268,435,456 bytes"),
    ("many", _many_files, r"[0-9]\.parquet: the rows of its source take more than 268,435,456 bytes"),
    ("one.parquet", lambda path: _plain(path, ["x" * (300 * MB)]), "1 cell too large.*raise snapshot.max_cell_bytes"),
    ("line.jsonl.gz", _packed(b'{"text": "', b"x", b'"}\n'), "take more than 268,435,456 bytes"),
    ("lines.jsonl.gz", _packed(b"", b"{}\n", b""), "take more than 268,435,456 bytes"),
    ("elements.json.gz", _packed(b'[{"text": "a"}', b",{}", b"]"), "take more than 268,435,456 bytes"),
    ("deep.json.gz", _packed(b'[{"text": "a", "b": [[]', b",[]", b"]}]"), "take more than 268,435,456 bytes"),
    ("records.csv.gz", _packed(b"text,label\n", b",\n", b""), "take more than 268,435,456 bytes"),
    ("quote.csv.gz", _packed(b'text,label\n"', b"a,b\n", b""), "take more than 268,435,456 bytes"),
)
#: Sources of good rows with one that is huge.
KEPT: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("among.parquet", _among_good),
    ("repeated-among.parquet", _repeated_among_good),
    ("among.jsonl", _line_among_good),
    ("among.csv", _field_among_good),
)


def _source(name: str, write: Callable[[Path], None]) -> Change:
    """Write a source beside the campaign's and name it in the campaign."""

    def change(site: Site) -> None:
        write(site.root / name)
        site.change(snapshot__source=name, snapshot__columns={"text": "text"})

    return change


def _newer(name: str, write: Callable[[Path], None]) -> Change:
    """Write a source of newer traffic for a campaign without labels in its columns."""

    def change(site: Site) -> None:
        write(site.root / name)

    return change


def _bounded(site: Site, ran: Ran) -> None:
    assert ran.peak < MOST, f"took {ran.peak / MB:.0f} MiB"


def _one_quarantined(site: Site, ran: Ran) -> None:
    _bounded(site, ran)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in site.output.glob("snapshots/*/snapshot.json")]
    assert [one["rows"]["kept"] for one in found if one["quarantined"] == {"cell too large": 1}] == [400]


TEMPORARY = (("TMPDIR", "tmp"),)
#: Name of the litter, what makes it, and what must be true after the next command.
LITTER: tuple[tuple[str, Change, Check], ...] = (
    ("a temporary folder of a killed process", _remnant, _gone(f"tmp/{FOLDER}")),
    ("one that cannot be entered", _closed_remnant, _gone(f"tmp/{FOLDER}")),
    ("one with a link to a folder", _linking_remnant, _gone(f"tmp/{FOLDER}")),
    ("one of a live process", _live, _released(_stays(f"tmp/{FOLDER}/weights"))),
    ("one that may be about to be locked", _young, _stays(f"tmp/{FOLDER}/weights")),
    (
        "others with alike names",
        _named_alike,
        _stays("tmp/ray-distill-scratch-mine", f"tmp/{FOLDER}", "precious/weights"),
    ),
    ("one of another user", _of_another_user, _stays(f"tmp/{FOLDER}/weights" if os.getuid() == 0 else "tmp")),
    (
        "unfinished files and scratch of a killed command",
        _unfinished,
        _gone(f"out/state/{PART}", f"out/evaluations/x/{PART}", f"out/promotion/{PART}", f"out/{PLAN}"),
    ),
    (
        "own files with alike names",
        _own_files,
        _stays("out/plan-mine/weights", "precious/weights", "out/state/.mine.part", "out/state/mine.part"),
    ),
    ("the lock of a killed command", _left_lock, lambda site, ran: None),
)

TRIES = (
    *(
        Try(point=9, name=name, do=do, command=("promote", "{config}"), status=0, environment=TEMPORARY, check=check)
        for name, do, check in LITTER
    ),
    Try(
        point=9,
        name="litter beside a command that is at work",
        do=_held_lock,
        command=("promote", "{config}"),
        says="at work",
        check=_released(_stays(f"out/{PLAN}/weights")),
    ),
    Try(
        point=9,
        name="a half-written snapshot",
        do=_half_snapshot,
        command=("snapshot", "{config}"),
        status=0,
        stage="snapshot",
        check=_whole_snapshot,
    ),
    *(
        Try(
            point=9,
            name=f"a snapshot of {name}",
            do=_source(name, write),
            command=("snapshot", "{config}"),
            says=says,
            stage="snapshot",
            check=_bounded,
        )
        for name, write, says in REFUSED
    ),
    *(
        Try(
            point=9,
            name=f"a snapshot of good rows and one huge, {name}",
            do=_source(name, write),
            command=("snapshot", "{config}"),
            status=0,
            stage="snapshot",
            check=_one_quarantined,
        )
        for name, write in KEPT
    ),
    Try(
        point=9,
        name="a plan with a source of repeated texts",
        do=_source("repeated.parquet", _repeated),
        command=("plan", "{config}"),
        says="the rows of its source take more than",
        stage="snapshot",
        check=_bounded,
    ),
    Try(
        point=9,
        name="newer traffic of repeated texts",
        do=_newer("repeated.parquet", _repeated),
        command=("relabel", "{config}", "--source", "repeated.parquet", "--set", "snapshot.columns={text: text}"),
        check=_bounded,
    ),
)
