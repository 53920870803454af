"""SIGKILL while Ray trains: of a rank, the driver, a node; a node taken away after a notice; and one that comes.

``python -m tests.labs.training_kills --runs 25 --seed 0`` runs five scenarios for each and prints what became of them;
the exit status is 1 if one of them did not come to the curve and the weights of a run that nobody disturbed, or learnt
from an example twice in an epoch, or never. The moment is a step, drawn from the seed. The nodes have room for a rank
each. Where a node is to go, training asks for one or two ranks, and goes on with the other alone; else for two, because
what Ray has reserved for a number that may change it keeps for three minutes after its driver is dead. Where a node
comes, training begins with one rank, slowly, because Ray Train looks for room once a minute. Scenarios of odd numbers
train with DeepSpeed (ZeRO 2), the others, and the undisturbed run, with plain torch.
"""

import json
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from safetensors.torch import load_file

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import parse_config
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.job import TrainingJob
from ray_distill.students.order.cursor import global_batch_at, steps_per_epoch
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.models import tiny_text_processor
from tests.labs import campaign as lab
from tests.labs.scenarios import Driver, Hung, TooLate, play, small_cluster
from tests.labs.victims import descendants, end_node, processes, strike, title_of

#: The driver last: what Ray had reserved for it would keep the next one of two ranks or one waiting.
VICTIMS = ("rank", "node", "notice", "driver")
#: A node that comes. Nothing is killed, and the scenario takes minutes.
NEWCOMER = "newcomer"
EPOCHS, GLOBAL_BATCH, EVERY = 2, 12, 4
PAUSE, SLOWLY = 0.06, 4.0
TOLERANCE = 1e-5
HUNG = 300.0
#: What Ray calls the process of a rank.
RANK = "ray::RayTrainWorker"
#: Seconds from a notice until the node is gone.
NOTICE = 6.0


@dataclass(kw_only=True)
class Outcome:
    """What became of one scenario."""

    victim: str
    number: int
    moments: list[int] = field(default_factory=list)
    """Steps that had begun at each kill; where a node came, the first that two ranks took."""
    repeated: int = 0
    """Steps that were trained more than once: what a kill, or a node that comes, costs."""
    wrong: list[str] = field(default_factory=list)
    """Everything that is not as it must be."""

    @property
    def ok(self) -> bool:
        return not self.wrong and bool(self.moments)

    @property
    def told(self) -> str:
        return f"disturbed at step {self.moments}, {self.repeated} repeated"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: its job, and where its notes and its curve go."""

    folder: Path
    job: TrainingJob

    @property
    def order(self) -> dict[str, str]:
        """What a driver is told: see `tests.labs.training_driver`."""
        job = self.folder / "job.pickle"
        job.write_bytes(pickle.dumps(self.job))
        return {"job": str(job), "curve": str(self.folder / "curve.jsonl")}

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Every whole note of every rank, oldest first."""
        found = []
        for path in (self.folder / "notes").glob("*.jsonl"):
            found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        return sorted(found, key=lambda note: float(note["time"]))

    @property
    def curve(self) -> dict[int, float]:
        """Loss by step; a repeated step's last."""
        path = self.folder / "curve.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {one["step"]: one["loss"] for one in map(json.loads, lines)}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The student's."""
        found: dict[str, torch.Tensor] = load_file(self.folder / "students" / "student" / "model.safetensors")
        return found


class Lab:
    """A cluster of two nodes with room for a rank each, labels, and the run that nobody disturbs."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self._folder, self._cluster = folder, cluster
        self._second = self._add_node()
        source = lab.write_rows(folder / "rows.jsonl", lab.annotated(lab.texts(350, seed=3), train_labels=30))
        teacher = {"model": "tests.labs.campaign:spelling_teacher"}
        self._config = lab.load(
            folder / "campaign.yaml", lab.config_of(folder, source, teacher, tracking={"enabled": False})
        )
        self._labels = label(folder, cluster.address)
        self._driver = self._new_driver()
        self.whole = self._run("whole", "torch", 2)
        self._driver.begin(self.whole.order)
        answer = self._driver.result(HUNG)
        assert answer.startswith("done "), answer
        self.steps, self._texts = max(self.whole.curve), rows_of(self._labels)
        self._seeds = {seed_of(lab.SEED, step, rank): (step, rank) for step in range(self.steps) for rank in range(2)}
        wrong = self._compare(self.whole, Outcome(victim="none", number=0)).wrong
        assert not wrong, wrong

    def _new_driver(self) -> Driver:
        return Driver("training_driver.py", self._folder, self._cluster.address)

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

    def _run(self, name: str, engine: str, workers: int | list[int], pause: float = PAUSE) -> Run:
        """A training of its own: what is to be learnt is the same, notes and students have a folder of their own."""
        folder = self._folder / "runs" / name
        (folder / "students").mkdir(parents=True)
        config = self._config.model_dump(mode="json", by_alias=True)
        config["student"]["model"] = {
            "from": "module",
            "model": "tests.labs.noting:noting_student",
            "arguments": {"classes": list(lab.CLASSES), "notes": str(folder / "notes"), "pause": pause},
        }
        config["student"]["training"] |= {
            "workers": workers,
            "global_batch": GLOBAL_BATCH,
            "micro_batch": GLOBAL_BATCH,
            "epochs": EPOCHS,
            "checkpoint_every": EVERY,
            "evaluate_every": 2 * EVERY,
            "engine": engine,
            "zero_stage": 2,
        }
        return Run(
            folder=folder,
            job=TrainingJob(
                config=parse_config(config),
                labels=self._labels,
                output=str(folder / "students"),
                arms=("student",),
                seed=lab.SEED,
                resume=True,
            ),
        )

    def scenario(self, victim: str, seed: int, number: int) -> Outcome:
        """Kill, let it end or begin again, and look at what was learnt."""
        for draw in range(10):
            outcome = Outcome(victim=victim, number=number)
            run = self._run(
                f"{victim}-{number}-{draw}",
                "deepspeed" if number % 2 else "torch",
                [1, 2] if victim in ("node", "notice", NEWCOMER) else 2,
                SLOWLY if victim == NEWCOMER else PAUSE,
            )
            disturbed = self._joined if victim == NEWCOMER else self._disturbed
            try:
                disturbed(outcome, run, random.Random(f"{seed}/{victim}/{number}/{draw}"))
            except TooLate:
                continue
            except Hung as error:
                outcome.wrong.append(str(error))
                self._driver.kill()
                self._driver = self._new_driver()
                return outcome
            return self._compare(run, outcome)
        raise AssertionError(f"{victim} {number}: ten moments drawn, each too late")

    def _disturbed(self, outcome: Outcome, run: Run, rng: random.Random) -> None:
        self._driver.begin(run.order)
        kills = rng.choice((1, 2)) if outcome.victim == "rank" else 1
        for moment in sorted(rng.sample(range(1, self.steps - 3), kills)):
            self._await(run, moment)
            begun = self._begun(run)
            if not self._kill(outcome.victim, rng):
                if outcome.moments:
                    break
                self._driver.answer(HUNG)  # else the next run would take this one's answer for its own
                raise TooLate
            outcome.moments.append(begun)
            if len(outcome.moments) == 1 and outcome.victim == "rank":
                time.sleep(1.0)  # a second kill is of the ranks that are started anew, or of none
        if outcome.victim == "driver":
            self._driver = self._new_driver()
            self._driver.begin(run.order)
        answer = self._driver.result(HUNG)
        if not answer.startswith("done "):
            outcome.wrong.append(answer)
        if outcome.victim in ("node", "notice"):
            self._second = self._add_node()

    def _joined(self, outcome: Outcome, run: Run, rng: random.Random) -> None:
        """Begin on one node; another comes, and from some step on two ranks train."""
        self._cluster.remove_node(self._second)
        self._driver.begin(run.order)
        try:
            self._await(run, rng.randint(1, 4))
        finally:
            self._second = self._add_node()
        answer = self._driver.result(HUNG)
        if not answer.startswith("done "):
            outcome.wrong.append(answer)
        together = [self._seeds[note["seed"]][0] for note in run.notes if note["world"] == 2]
        if not together:
            outcome.wrong.append("no step was taken by two ranks")
        outcome.moments += sorted(together)[:1]

    def _await(self, run: Run, moment: int) -> None:
        """Wait until a step has begun.

        Raises:
            TooLate: the training is over.
        """
        deadline = time.monotonic() + HUNG
        while self._begun(run) < moment:
            if self._driver.answer() is not None:
                raise TooLate
            if time.monotonic() > deadline:
                raise Hung(f"step {moment} did not begin in {HUNG:g} s:\n{self._driver.tail()}")
            time.sleep(0.02)

    def _begun(self, run: Run) -> int:
        """Steps that some rank has begun."""
        found = {self._seeds[note["seed"]][0] for note in run.notes} if hasattr(self, "_seeds") else set()
        return max(found, default=-1) + 1

    def _kill(self, victim: str, rng: random.Random) -> bool:
        """SIGKILL a victim that is at work now; False if there is none."""
        if victim == "driver":
            self._driver.kill()
            return True
        if victim == "rank":
            return any(strike(pid, RANK) for pid in processes(self._cluster))
        if not self._at_work():
            return False
        if victim == "notice":
            self._give_notice()
        end_node(self._second)
        self._cluster.remove_node(self._second, allow_graceful=False)
        return True

    def _at_work(self) -> bool:
        """Whether a rank runs on the second node: training may have begun with one alone."""
        raylet = self._second.all_processes["raylet"][0].process.pid
        return any(title_of(pid).startswith(RANK) for pid in descendants(raylet))

    def _give_notice(self) -> None:
        """Tell the cluster that the second node will be taken away, as a cloud's agent does, and wait for that."""
        deadline = int((time.time() + NOTICE) * 1000)
        accepted, why = GcsClient(address=self._cluster.address).drain_node(
            self._second.node_id, autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "taken away", deadline
        )
        assert accepted, why
        time.sleep(NOTICE)

    def _compare(self, run: Run, outcome: Outcome) -> Outcome:
        """Hold a finished run against the undisturbed one, and against the order of examples."""
        if outcome.wrong:
            return outcome
        for step, loss in run.curve.items():
            if not np.isclose(loss, self.whole.curve[step], rtol=TOLERANCE):
                outcome.wrong.append(f"step {step}: loss {loss}, undisturbed {self.whole.curve[step]}")
        if holes := sorted(set(range(1, self.steps + 1)) - run.curve.keys()):
            outcome.wrong.append(f"the curve has no step {holes} of {self.steps}")
        for name, value in self.whole.weights.items():
            # No answer depends on the bias of keys: its gradient is rounding alone, which Adam makes a step of.
            if not name.endswith("key.bias") and not torch.allclose(run.weights[name], value, rtol=1e-3, atol=1e-5):
                outcome.wrong.append(f"{name} differs by {float((run.weights[name] - value).abs().max()):.2g}")
        outcome.repeated, learnt = self._learnt(run)
        rows = len(self._texts)
        steps = steps_per_epoch(rows, GLOBAL_BATCH)
        for epoch in range(EPOCHS):
            seen = Counter(row for step in range(epoch * steps, (epoch + 1) * steps) for row in learnt.get(step, []))
            if seen != Counter(range(rows)):
                outcome.wrong.append(
                    f"epoch {epoch}: {sum(count > 1 for count in seen.values())} examples twice, "
                    f"{rows - len(seen)} never"
                )
        for step, found in learnt.items():
            if sorted(found) != sorted(global_batch_at(lab.SEED, step, rows, GLOBAL_BATCH).tolist()):
                outcome.wrong.append(f"step {step} learnt from other examples than its own")
        return outcome

    def _learnt(self, run: Run) -> tuple[int, dict[int, list[int]]]:
        """How many steps were repeated, and the rows of each step as they were learnt last, without padding."""
        last: dict[int, dict[int, dict[str, Any]]] = {}
        begun = Counter[int]()
        for note in run.notes:
            step, rank = self._seeds[note["seed"]]
            begun[step] += rank == 0
            of_step = last.setdefault(step, {})
            if of_step and next(iter(of_step.values()))["world"] != note["world"]:
                of_step.clear()  # begun anew with another number of ranks
            of_step[rank] = note
        learnt = {}
        for step, notes in last.items():
            rows = [self._texts[tuple(row)] for rank in sorted(notes) for row in notes[rank]["rows"]]
            learnt[step] = rows[: len(global_batch_at(lab.SEED, step, len(self._texts), GLOBAL_BATCH))]
        return sum(count > 1 for count in begun.values()), learnt

    def close(self) -> None:
        self._driver.close()


def rows_of(labels: LabelSetRef) -> dict[tuple[int, ...], int]:
    """Rows of the training data by the tokens of their text."""
    table = open_snapshot(labels.snapshot).read("train", ["row_id", "text"]).combine_chunks().sort_by("row_id")
    tokens = TASKS["text_classification"].inputs.encode(table, tiny_text_processor()).features["input_ids"]
    found = {
        tuple(tokens.values[start:end].tolist()): row
        for row, (start, end) in enumerate(zip(tokens.offsets, tokens.offsets[1:], strict=False))
    }
    assert len(found) == table.num_rows, "texts must be told apart by their tokens"
    return found


def seed_of(seed: int, step: int, rank: int) -> int:
    """What the training loop seeds torch with."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint32)[0])


def label(folder: Path, address: str) -> LabelSetRef:
    """Freeze and label, by the commands."""
    out = ""
    for command in ("snapshot", "label"):
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "ray_distill.cli",
                command,
                str(folder / "campaign.yaml"),
                "--address",
                address,
                "--json",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
        assert ran.returncode == 0, ran.stderr
        out = ran.stdout
    return LabelSetRef.from_json(out.splitlines()[-1])


@contextmanager
def open_lab() -> Iterator[Lab]:
    """A lab on a cluster of its own; it is gone afterwards."""
    modules = [Path(__file__).parents[2]]
    with small_cluster("train-kill-lab", modules, cpus=1, worker_niceness=0) as (folder, cluster):
        opened = Lab(folder, cluster)
        try:
            yield opened
        finally:
            opened.close()


if __name__ == "__main__":
    sys.exit(
        play(
            __doc__,
            open_lab,
            (*VICTIMS, NEWCOMER),
            runs=25,
            about=lambda opened: f"{opened.steps} steps when nobody is killed",
            columns={"disturbed": lambda one: len(one.moments), "repeated": lambda one: one.repeated},
        )
    )
