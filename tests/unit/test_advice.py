"""What messages advise can be followed: each advice has a test that does, and what it names exists."""

import argparse
import ast
import re
import shutil
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ray_distill.cli.parser import build_parser
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.errors import CorruptStore, DamagedFile, DistillError, TrainingError
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages.train import Curves
from ray_distill.runtime.sweep.trial_tracking import TrialRuns
from ray_distill.runtime.sweep.trial_worker import RUNGS, STOPPED, known_rungs
from ray_distill.sequences.store import create_or_open
from ray_distill.snapshots import open_snapshot, take_snapshot
from ray_distill.storage import files
from ray_distill.students.checkpoints.store import find_checkpoint
from ray_distill.students.process_group import Ranks
from ray_distill.testing.sequences import fake_generator
from ray_distill.tracking.none import InMemoryRegistry, NullTracker
from tests.labs import advice
from tests.labs.hostile.__main__ import TRIES
from tests.labs.training import Lab, run_until_stopped, write_model

ROOT = Path(__file__).parents[2]
SPLITS = {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2}
ALONE = Ranks(rank=0, world=1)
TEXTS = tuple(advice.texts())
ADVICE = tuple(advice.advice_of())
LISTED = [
    *(line for lines in advice.FOLLOWED.values() for line in lines),
    *(line for lines in advice.NOT_FOLLOWED.values() for line in lines),
    *advice.NO_ADVICE,
]


def test_every_advice_is_listed() -> None:
    """A new one needs a test that follows it, and a line in ``tests/labs/advice.py``."""
    unlisted = [
        f"{text.module}:{text.line}: {text.text}"
        for text in ADVICE
        if not any(text.module == module and part in text.text for module, part in LISTED)
    ]
    assert unlisted == []


def test_every_line_of_the_list_is_an_advice() -> None:
    """A line whose message has changed or gone is mended or removed."""
    unknown = [line for line in LISTED if not any(line[0] == text.module and line[1] in text.text for text in ADVICE)]
    assert unknown == []


def _exists(test: str) -> bool:
    if not test.startswith("tests/"):
        return any(one.name == test for one in TRIES)
    path, name = test.split("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).exists() else ast.Module([], [])
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def test_every_test_that_follows_an_advice_exists() -> None:
    """A pytest function by its file and name, or a hostile try by its name."""
    assert [test for test in advice.FOLLOWED if not _exists(test)] == []


def test_every_try_that_follows_an_advice_does_something() -> None:
    """It has steps behind the refusal, and the last is a command that must succeed."""
    tries = [one for one in TRIES if one.name.startswith("advice: ")]
    assert len(tries) > 40
    assert [one.name for one in tries if not one.then or callable(one.then[-1])] == []
    assert len({one.name for one in TRIES}) == len(TRIES)


def _commands() -> dict[str, argparse.ArgumentParser]:
    [found] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def test_commands_and_options_that_messages_name_exist() -> None:
    """`ray-distill COMMAND --option`, and options alone: of that command, or of any."""
    commands = _commands()
    options = {option for parser in commands.values() for option in parser._option_string_actions}
    foreign = {"--host", "--head", "--follow", "--generate", "--shm-size", "--allowed-hosts", "--port"}
    foreign |= {"--hash", "--backend-store-uri"}
    wrong = []
    for text in ADVICE:
        for named, rest in re.findall(r"`ray-distill ([a-z-]+)([^`]*)`", text.text):
            own = set(commands[named]._option_string_actions) if named in commands else set()
            wrong += [f"{text}: {named}"] * (named not in commands)
            wrong += [f"{text}: {one}" for one in re.findall(r"--[a-z-]+", rest) if one not in own]
        wrong += [
            f"{text}: {one}" for one in re.findall(r"(?<![\w-])--[a-z-]+", text.text) if one not in options | foreign
        ]
    assert wrong == []


def _fields(kind: Any) -> Iterator[type[BaseModel]]:
    """Yield the models of a field's type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in getattr(kind, "__args__", ()):
        yield from _fields(part)


def _known(model: type[BaseModel], names: list[str]) -> bool:
    """Return whether a dotted name leads to a field; below a mapping or a value any name is one."""
    if not names:
        return True
    by_name = {field.alias or name: field for name, field in model.model_fields.items()}
    if names[0] not in by_name:
        return False
    inner = list(_fields(by_name[names[0]].annotation))
    mapping = "Mapping" in str(by_name[names[0]].annotation) or "dict" in str(by_name[names[0]].annotation)
    return mapping or (not inner and len(names) == 1) or any(_known(one, names[1:]) for one in inner)


def test_fields_that_messages_name_exist() -> None:
    """`labels.signal.k`: every dotted name of a campaign's section leads to a field that can be set."""
    sections = "|".join(name for name in Campaign.model_fields if name not in ("campaign", "task", "seed", "output"))
    named = re.compile(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_0-9]+)+(?![\w/-]*[/(\[])")
    found, wrong = 0, []
    for text in TEXTS:
        for name in named.findall(text.text):
            found += 1
            if not _known(Campaign, name.split(".")) and name != "sweep.html":
                wrong.append(f"{text.module}:{text.line}: {name}")
    assert found > 200
    assert wrong == []


def test_packages_that_messages_name_are_those_of_the_project() -> None:
    """``pip install 'ray-distill[x]'`` names an extra, ``pip install y`` a package of the project's own lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = {
        re.split(r"[\[<>=]", line)[0]
        for line in (*project["dependencies"], *(one for of in extras.values() for one in of))
    }
    named = {extra for text in TEXTS for extra in re.findall(r"ray-distill\[([a-z0-9-]+)\]", text.text)}
    installed = {name for text in TEXTS for name in re.findall(r"pip install ([a-z][a-z0-9-]+)", text.text)}
    assert named and named <= extras.keys()
    assert installed and installed <= packages
    assert {"s3", "gcs", "azure"} <= extras.keys(), "which storage/remote.py names by a file system's protocol"
    assert (ROOT / "cluster" / "constraints.txt").exists()


def test_commands_of_other_tools_that_messages_name_exist() -> None:
    """`ray start --head`, `ray job logs --follow`, `ray get-auth-token --generate`, `mlflow ui --port`."""
    installed = Path(sysconfig.get_path("purelib"))
    named = {
        "ray/scripts/scripts.py": ('"--head"', 'name="get-auth-token"', '"--generate"'),
        "ray/dashboard/modules/job/cli.py": ('"--follow"', '"--address"', "def logs(", "def stop("),
        "mlflow/cli/__init__.py": ('"--backend-store-uri"', "--allowed-hosts", '"ui"'),
        "mlflow/utils/cli_args.py": ('"--port"',),
    }
    absent = {
        f"{path}: {word}"
        for path, words in named.items()
        for word in words
        if word not in (installed / path).read_text()
    }
    assert absent == set()


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return the folder of a training run that was stopped behind two checkpoints."""
    write_model(tmp_path)
    run_until_stopped(_lab(tmp_path))
    return tmp_path / "trial" / "checkpoints"


def _lab(folder: Path, **changes: Any) -> Lab:
    return Lab(folder=str(folder), stop_after=6, **changes)


def _damage(checkpoint: Path) -> None:
    next(checkpoint.glob("rank-0/**/*.safetensors")).write_bytes(b"x")


def test_a_damaged_checkpoint_that_is_deleted_leaves_the_one_before(trained: Path) -> None:
    """The newest is damaged: without its folder the one before is found."""
    newest = max(path.parent for path in trained.glob("*/marker.json"))
    _damage(newest)
    shutil.rmtree(newest)
    found = find_checkpoint(str(trained), ALONE)
    assert found is not None and found.url != str(newest)


def test_without_the_folder_of_damaged_checkpoints_training_starts_anew(trained: Path, tmp_path: Path) -> None:
    """All are damaged: the run is refused with the folder's name, and begins anew without it."""
    for marker in trained.glob("*/marker.json"):
        _damage(marker.parent)
    with pytest.raises(TrainingError, match=f"no usable checkpoint in {trained}: .*delete that folder"):
        run_until_stopped(_lab(tmp_path, resume=True))
    shutil.rmtree(trained)
    run_until_stopped(_lab(tmp_path, resume=True))
    assert find_checkpoint(str(trained), ALONE) is not None


def test_without_the_folder_of_another_plan_training_starts_anew(trained: Path, tmp_path: Path) -> None:
    """Checkpoints of other labels are not resumed from: the message names the folder to delete."""
    with pytest.raises(TrainingError, match="labels labels-1, this run has labels labels-2") as refused:
        run_until_stopped(_lab(tmp_path, resume=True, labels="labels-2"))
    named = re.search(r"or delete (\S+) to train from the start", str(refused.value))
    assert named is not None and named[1] == str(trained)
    shutil.rmtree(named[1])
    run_until_stopped(_lab(tmp_path, resume=True, labels="labels-2"))
    assert find_checkpoint(str(trained), ALONE) is not None


def _session(folder: Path) -> Session:
    config = Campaign.model_validate(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(folder),
            "snapshot": {"source": "r"},
            "labels": {"teacher": {"model": "m:f"}},
        }
    )
    tracker = NullTracker()
    with tracker.run("c") as run:
        return Session(config=config, tracker=tracker, registry=InMemoryRegistry(), parent=run)


def _deleted(error: DistillError) -> None:
    """Delete the file that a message tells to delete."""
    named = re.match(r"(\S+) is damaged.*delete it", str(error))
    assert named is not None, str(error)
    Path(named[1]).unlink()


def test_recorded_steps_that_are_deleted_are_recorded_again(tmp_path: Path) -> None:
    """The file of the steps that the tracker has."""
    session = _session(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "recorded.json").write_text('{"steps":')
    with session.stage("train") as stage:
        with pytest.raises(DamagedFile, match="delete it, and the curves are recorded again") as refused:
            Curves(session, stage, str(tmp_path / "students"))
        _deleted(refused.value)
        Curves(session, stage, str(tmp_path / "students")).record()


def test_files_of_a_trial_that_are_deleted_are_made_again(tmp_path: Path) -> None:
    """The markers of a trial, beside checkpoints that stay, and the id of its run."""
    trial, runs = tmp_path / "trials" / "key", tmp_path / "runs"
    for path in (trial / RUNGS, trial / STOPPED, runs / "key.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    for _ in (RUNGS, STOPPED):
        with pytest.raises(DamagedFile, match="delete it, and the trial is judged again") as refused:
            known_rungs(str(trial), "rule")
        _deleted(refused.value)
    assert known_rungs(str(trial), "rule") == {}
    tracked = TrialRuns(_session(tmp_path), str(runs))
    with pytest.raises(DamagedFile, match="delete it, and the trial gets a new run") as refused:
        tracked._kept("key")
    _deleted(refused.value)
    assert tracked._kept("key") == {}


@pytest.mark.parametrize("mend", [False, True])
def test_a_link_to_nothing_is_removed_or_mended(tmp_path: Path, mend: bool) -> None:
    """A source's folder has a link whose file is gone."""
    (tmp_path / "source").mkdir()
    link = tmp_path / "source" / "a.jsonl"
    link.symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DistillError, match="which does not exist; remove or mend the link"):
        files.list_files(str(tmp_path / "source"), follow=True)
    (tmp_path / "gone.jsonl").write_text("{}") if mend else link.unlink()
    assert len(files.list_files(str(tmp_path / "source"), follow=True)) == mend


@pytest.mark.parametrize("how", ["restored", "removed"])
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("b.jsonl.gz", b"no gzip", "is not a whole gzip file .*: restore it"),
        ("b.csv", b"<!DOCTYPE html>", "is a web page, not CSV: download the file again"),
        ("b.parquet", b"PAR1 and no more", "restore or remove the file"),
    ],
)
def test_a_source_file_that_is_not_whole_is_restored_or_removed(
    tmp_path: Path, name: str, content: bytes, says: str, how: str
) -> None:
    """The snapshot is refused by the file's name, and taken once it is whole or gone."""
    rows = "".join(f'{{"text": "row {number}", "label": "a"}}\n' for number in range(60))
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / name).write_bytes(content)
    config = SnapshotConfig.model_validate(
        {"source": [f"{tmp_path}/a.jsonl", f"{tmp_path}/{name}"], "columns": {"label": "label"}, "splits": SPLITS}
    )
    with pytest.raises(DistillError, match=says):
        take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "snapshots"))
    if how == "restored":
        _write_whole(tmp_path / name)
    else:
        (tmp_path / name).unlink()
        config = config.model_copy(update={"source": (f"{tmp_path}/a.jsonl",)})
    ref = take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "snapshots"))
    assert open_snapshot(ref).manifest.rows.kept == 60 + (how == "restored")


def _write_whole(path: Path) -> None:
    """Write a file of one row in the format of its name."""
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(b'{"text": "more", "label": "a"}\n'))
    elif path.suffix == ".csv":
        path.write_text("text,label\nmore,a\n")
    else:
        pq.write_table(pa.table({"text": ["more"], "label": ["a"]}), path)


def test_texts_of_another_generator_are_moved_away(tmp_path: Path) -> None:
    """A store of texts that others settings wrote: moved away, a new one begins; moved back, the old one opens."""
    store = tmp_path / "texts"
    create_or_open(str(store), fake_generator(seed=1))
    with pytest.raises(CorruptStore, match="restore store.json, or move the folder away"):
        create_or_open(str(store), fake_generator(seed=2))
    store.rename(tmp_path / "aside")
    assert create_or_open(str(store), fake_generator(seed=2)).manifest.seed == 2
    assert create_or_open(str(tmp_path / "aside"), fake_generator(seed=1)).manifest.seed == 1
