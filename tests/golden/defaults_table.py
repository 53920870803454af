"""The golden table of defaults: students of campaigns that name teacher, source, columns and a size, nothing else.

    python -m tests.golden.defaults_table FOLDER                        every data set, every ablation
    python -m tests.golden.defaults_table FOLDER --data digits --without rates --seeds 0      a small part of them

Each student is trained beside its two baselines with the defaults of `config`, and again with one of them left out
(`WITHOUT`): what that costs is what the default is worth. `--with` adds what is no default (`WITH`), and prints the
teacher's seconds for views of train rows. All is done in this process, without Ray, by plain torch in one thread. What
is finished is not done again: the same command goes on where it was.

A number is the mean over the seeds; its interval is of the test rows (the mean of the seeds' own), and behind ± is half
the range of the seeds. Differences are paired, row by row and seed by seed.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign, parse_config
from ray_distill.evaluation.predict.rows import join_predictions
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.heads.fit_head import fitted_rows_url
from ray_distill.models.io.load import load_model
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.stages.label import head_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.students.arms import campaign_arms
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure
from tests.golden.default_sets import DATA
from tests.golden.hidden_table import HOW, answers_of, cell, label_here, say, tested_rows

FRESH = "the teacher's weights"
STUDENT, TRUE, TEACHERS = "student", "baseline_hard_labels", "baseline_teacher_hard_labels"


#: By name the settings in whose place a default is: what trained students before, or a part that is left out.
WITHOUT: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "budget": {"training": {"epochs": 3}},
    "rates": {"training": {"learning_rate": 3e-4}},
    "batch": {"training": {"global_batch": 256}},
    "temperature": {"losses": {"soft": {"weight": 0.9}, "hard": {"weight": 0.1}}},
    "soft labels alone": {"losses": {"soft": {"temperature": "auto"}}},
    FRESH: {},
    "true labels as well": {"losses": {"soft": {"temperature": "auto"}, "hard": {"weight": 0.5}}},
}

#: By name what is added to the defaults: the teacher's last hidden state, views of train rows (`snapshot.augment`),
#: and as a control no views in as many steps as four of them take.
WITH: Mapping[str, Mapping[str, Any]] = {
    "hidden states": {
        "hidden": {"layers": [-1], "pool": "mean"},
        "losses": {
            "soft": {"weight": 0.9, "temperature": "auto"},
            "hard": {"weight": 0.1},
            "hidden": {"kind": "cosine", "layers": "last"},
        },
    },
    **{f"views {views}": {"augment": {"views": views}} for views in (1, 2, 4)},
    "views 2 that keep the class": {"augment": {"views": 2, "kinds": {"shift": 0.1, "crop": 0.3, "colour": 0.3}}},
    "views 2 that mix": {"augment": {"views": 2, "kinds": {"mixup": 0.5, "cutmix": 0.5}}},
    "five times the steps": {"training": {"budget": {"passes": [3, 300]}}},
}


def main() -> None:
    """Train what is missing, and print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=tuple(DATA))
    parser.add_argument("--without", nargs="*", choices=WITHOUT, default=tuple(WITHOUT))
    parser.add_argument("--with", nargs="*", choices=WITH, default=(), dest="added")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--set", nargs="*", default=[], help="training settings of all, name=JSON, to try a default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    changes = {name: json.loads(value) for name, value in (one.split("=", 1) for one in asked.set)}
    for data in asked.data:
        folder = asked.folder.resolve() / data
        names = tuple(dict.fromkeys(("", *asked.without, *asked.added)))
        names = tuple(name for name in names if name != FRESH or DATA[data].fresh is not None)
        labels = {name: _labelled(folder, data, name) for name in names}
        for name in names:
            for seed in asked.seeds:
                _train(folder, data, labels[name], name, seed=seed, changes=changes)
        _show(folder, data, labels, asked.seeds)


def _config(folder: Path, data: str, student: Mapping[str, Any], name: str = "") -> Campaign:
    found = DATA[data]
    training = {"engine": "torch", "cpus": 1, **student.get("training", {})}
    added = WITH.get(name, {})
    return absolute(
        parse_config(
            {
                "campaign": data,
                "task": found.task,
                "seed": found.seed,
                "output": str(folder / "runs"),
                "snapshot": {
                    "source": str(folder / "traffic.parquet"),
                    "columns": dict(found.columns),
                    "splits": dict(found.splits),
                    "exclude": [str(folder / own) for own in found.own],
                    "augment": added.get("augment"),
                },
                "labels": {
                    "teacher": {**found.teacher, "model": str(folder / found.teacher["model"])},
                    "hidden": added.get("hidden", {}),
                    "store": str(folder / _store(name)),
                },
                "student": {"model": dict(found.model), **student, "training": training},
                "tracking": {"enabled": False},
            }
        )
    )


def _labelled(folder: Path, data: str, name: str) -> LabelSetRef:
    """Return the labels of the rows, with the views or states of an entry of `WITH`; keep the teacher's seconds."""
    if not (folder / "traffic.parquet").exists():
        DATA[data].prepare(folder)
    if not {"augment", "hidden"} & WITH.get(name, {}).keys():
        name = ""
    kept = folder / (f"labels-{_file(name)}.json" if name else "labels.json")
    if not kept.exists():
        config, seconds = _config(folder, data, {}, name), list[float]()
        head_url = head_of(str(folder / _store(""))) if name else None
        kept.write_text(label_here(config, head_url, seconds).to_json())
        (folder / f"seconds-{_store(name)}-{_file(name)}.json").write_text(json.dumps(sum(seconds)))
        say(f"{data} {name}: labelled in {sum(seconds):.1f} s")
    return LabelSetRef.from_json(kept.read_text())


def _store(name: str) -> str:
    """Return the folder of an entry's labels: states are stored beside distributions of their own."""
    return "labels-hidden" if "hidden" in WITH.get(name, {}) else "labels"


def _teacher_seconds(folder: Path, labels: LabelSetRef) -> float:
    """Return the teacher's seconds for the views of a label set, at its mean pace over all rows of the store."""
    counts, store = open_snapshot(labels.snapshot).manifest.view_counts, open_store(labels.store)
    views = 0 if counts is None else sum(counts["kept"].values())
    store.log.refresh()
    seconds = sum(json.loads(path.read_text()) for path in folder.glob(f"seconds-{_store('')}-*.json"))
    return views * seconds / max(1, int(store.ledger.counts("rows").sum()))


def _file(name: str) -> str:
    return name.replace(" ", "-").replace("'", "") or "defaults"


def _name(left_out: str, seed: int) -> str:
    return f"{_file(left_out)}-{seed}"


def _train(
    folder: Path, data: str, labels: LabelSetRef, left_out: str, *, seed: int, changes: Mapping[str, Any]
) -> None:
    """Train all arms once, keep their answers for the test rows, and forget them."""
    name, results, started = _name(left_out, seed), folder / "results", time.monotonic()
    if (results / f"{name}.json").exists():
        return
    changed = {key: item for key, item in {**WITHOUT, **WITH}[left_out].items() if key in ("training", "losses")}
    if left_out == FRESH:
        changed["model"] = DATA[data].fresh
    changed["training"] = {**changed.get("training", {}), **changes}
    config, head = _config(folder, data, changed, left_out), head_of(str(folder / _store("")))
    refs = run_arms(
        TrainingJob(
            config=config,
            labels=labels,
            seed=seed,
            output=str(folder / "students" / name),
            resume=True,
            arms=campaign_arms(config) if not left_out else (STUDENT,),
            teacher_rows_url=fitted_rows_url(head) if head else None,
        ),
        SilentReporter(),
    )
    results.mkdir(exist_ok=True)
    facts = {}
    for ref in refs:
        model = load_model(ref.url, task=config.task)
        pq.write_table(answers_of(config, labels, model), results / f"{name}-{ref.arm}.parquet")
        found = read_facts(ref.url)
        facts[ref.arm] = {key: found[key] for key in ("passes", "steps", "most_steps", "learning_rate", "global_batch")}
        facts[ref.arm] |= {"tried": found.get("tried_rates"), "best_epoch": found["best_epoch"]}
    files.delete(str(folder / "students" / name))
    (results / f"{name}.json").write_text(json.dumps(facts))
    say(f"{data} {name}: {time.monotonic() - started:.0f} s, {json.dumps(facts[STUDENT])}")


def _show(folder: Path, data: str, sets: Mapping[str, LabelSetRef], seeds: Sequence[int]) -> None:
    config, labels = _config(folder, data, {}), sets[""]
    rows = tested_rows(config, labels)
    kept = folder / "results" / "teacher.parquet"
    if not kept.exists():
        model = load_model(config.labels.teacher, task=config.task, head_url=head_of(labels.store))
        pq.write_table(answers_of(config, labels, model), kept)
    teacher = pq.read_table(kept)

    def joined(name: str, seed: int, arm: str = STUDENT) -> pa.Table:
        answers = pq.read_table(folder / "results" / f"{_name(name, seed)}-{arm}.parquet")
        return join_predictions(rows, answers, teacher=teacher)

    whole = join_predictions(rows, teacher)
    accuracy = measure(whole, HOW)["accuracy"].value
    say(f"\n{data}: {rows.num_rows} test rows, teacher's accuracy {accuracy:.3f}; {len(seeds)} seeds\n")
    say("| | accuracy | of the teacher's | KL from teacher, nats | ECE | less the defaults' accuracy |")
    say("|---|---|---|---|---|---|")
    lines = [("defaults", "", STUDENT), ("same, true labels", "", TRUE), ("same, teacher's hard labels", "", TEACHERS)]
    for name in sets:
        if name:
            title = f"{'with' if name in WITH else 'without'}: {name}"
            if "augment" in WITH.get(name, {}):
                title += f" ({_teacher_seconds(folder, sets[name]):.1f} s of the teacher)"
            lines.append((title, name, STUDENT))
    for title, name, arm in lines:
        tables = [joined(name, seed, arm) for seed in seeds]
        found = [measure(table, HOW) for table in tables]
        ratio = sum(one["accuracy"].value for one in found) / len(found) / accuracy
        cells = [cell([one["accuracy"] for one in found]), f"{ratio:.3f}"]
        cells += [cell([one[metric] for one in found]) for metric in ("kl_from_teacher", "ece")]
        pairs = [compare(table, joined("", seed), HOW)["accuracy"] for table, seed in zip(tables, seeds, strict=True)]
        cells.append("–" if title == "defaults" else cell(pairs, sign="+"))
        say(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    sys.exit(main())
