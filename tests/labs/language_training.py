"""A tiny real training problem of a language model for the tests of this folder, and what training it should give.

A Llama of 2 layers learns random texts from the stored labels of another. Everything is a function of seeds, so that
every rank and every process builds the same. `reference` trains it again as plainly as can be: in float64, each
document alone, whole logits, losses written out from their formulas (MATHS.md §1-5).
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from torch import Tensor, nn

from ray_distill.config import LossConfig, StudentModel, TeacherConfig, TrainingConfig
from ray_distill.labels.model.signal import Signal
from ray_distill.losses import catalogue
from ray_distill.models.core.model import Model
from ray_distill.models.students.build import build_student
from ray_distill.runtime.labelling.batching import answer_all
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import Engine, checkpoint_activations, compile_module
from ray_distill.students.loop.train_loop import train_run
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule, layer_pairs, make_projections
from ray_distill.students.objective.loss_settings import needs_layers
from ray_distill.students.objective.schedules import rate_factor
from ray_distill.students.objective.validate_losses import pairs_of, required_layers, state_scales
from ray_distill.students.objective.weighted_losses import build_terms, group_of
from ray_distill.students.order.cursor import global_batch_at
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import current_ranks
from ray_distill.students.telemetry.reporter import TrainingStopped
from ray_distill.tasks.answers.tokens import learn as token_learn
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import open_teacher
from ray_distill.testing.models import write_tiny_causal_model
from tests.labs.training import Ran, Recorder

TASK = "causal_lm"
DOCUMENTS = 30
GLOBAL_BATCH = 12
LAYERS = (1, 2)
TEMPERATURES = (1.0, 2.0)
BOTH: Mapping[str, Mapping[str, Any]] = {"soft": {"weight": 0.7}, "hard": {"weight": 0.3}}

#: Losses, the estimator of the labels, and the student.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "topk": {},
    "sampled": {"estimator": "sampled"},
    "hybrid": {"estimator": "hybrid"},
    "dense": {"estimator": "dense"},
    "hot": {"losses": {"soft": {"temperature": 2}, "hard": {"weight": 0.5}}, "estimator": "dense"},
    "reverse_kl": {"losses": {"soft": {"divergence": "reverse_kl"}}},
    "jsd": {"losses": {"soft": {"divergence": {"jsd": {"beta": 0.3}}}}},
    "skewed_kl": {"losses": {"soft": {"divergence": "skewed_kl"}}},
    "hard": {"losses": {"hard": {}}},
    "teacher_hard": {"losses": {"teacher_hard": {}}},
    "hidden_cosine": {"losses": {"soft": {"weight": 0.5}, "hidden": {"kind": "cosine"}}},
    "hidden_mse": {"losses": {"soft": {"weight": 0.5}, "hidden": {"kind": "mse", "weight": 0.01}}},
    "tied": {"student": "tied"},
    "bent": {"student": "bent", "losses": {"soft": {"weight": 0.7}, "hard": {"weight": 0.3}, "hidden": {}}},
    "lora": {"lora": True},
}
#: Losses of every kind at once.
EVERY_LOSS = {"soft": {"weight": 0.6}, "hard": {"weight": 0.3}, "hidden": {"weight": 0.5}}


@dataclass(frozen=True, kw_only=True)
class Lab:
    """One run: where, of which labels, with which losses and settings. Picklable."""

    folder: str
    losses: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: BOTH)
    training: Mapping[str, Any] = field(default_factory=dict)
    estimator: str = "topk"
    student: str = "plain"
    """One of `STUDENTS`."""
    lora: bool = False
    steps: int = 6
    resume: bool = False
    stop_after: int | None = None
    trial: str = "trial"
    """Folder of its checkpoints."""


#: By name, in what the students' checkpoints differ. A bent one scales its logits: its head cannot be fused.
STUDENTS: Mapping[str, Mapping[str, Any]] = {"plain": {}, "tied": {"tie_word_embeddings": True}, "bent": {}}


def write_models(folder: Path) -> str:
    """Teacher and students: to be written once, before any rank starts."""
    write_tiny_causal_model(folder / "teacher", seed=1, initializer_range=0.5)
    for name, overrides in STUDENTS.items():
        write_tiny_causal_model(folder / name, seed=5, **overrides)
    bent = transformers.GraniteConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        logits_scaling=0.5,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(5)
    transformers.GraniteForCausalLM(bent).save_pretrained(folder / "bent")
    return str(folder)


def table_of(rows: int, seed: int) -> pa.Table:
    """Documents of 2 to 30 random letters."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh "), rng.integers(1, 30))) + "z" for _ in range(rows)]
    return pa.table({"row_id": pa.array([rng.bytes(16) for _ in range(rows)], pa.binary(16)), "text": texts})


def labels_of(lab: Lab, table: pa.Table) -> tuple[pa.Array, Signal]:
    """What the teacher says of all rows but the first two, which it has not labelled."""
    teacher = open_teacher(TeacherConfig(model=f"{lab.folder}/teacher"), task=TASK)
    request = LabelRequest(
        estimator=lab.estimator,
        k=6,
        draws=9,
        temperatures=TEMPERATURES,
        seed=3,
        pool="token",
        layers=LAYERS if any(needs_layers(name, catalogue.LOSSES) for name in lab.losses) else (),
    )
    ids, signal, _ = answer_all(
        teacher, teacher.task.inputs.encode(table.slice(2), teacher.model.processor), request, batch=5
    )
    return ids, signal


def student_of(lab: Lab) -> Model:
    """The student, with adapters if it is trained through them."""
    lora = {"lora": {"rank": 4, "alpha": 8}} if lab.lora else {}
    config = StudentModel.model_validate({"from": "checkpoint", "model": f"{lab.folder}/{lab.student}", **lora})
    return build_student(config, task=TASK, classes=(), teacher=TeacherConfig(model=f"{lab.folder}/teacher"), seed=3)


def data_of(lab: Lab, model: Model, *, rows: int, seed: int, packed: int = 0) -> PositionExamples:
    """Documents and labels; the teacher may not teach three of those it has labelled."""
    table = table_of(rows, seed)
    return build_examples(
        table,
        answers=TokenFormat(task=TASKS[TASK], vocabulary=model.vocabulary, pool="token", packed=packed),
        processor=model.processor,
        labels=labels_of(lab, table),
        excluded=table["row_id"].combine_chunks()[4:7],
    )


def settings_of(lab: Lab) -> TrainingConfig:
    """The run's settings."""
    return TrainingConfig.model_validate(
        {
            "global_batch": GLOBAL_BATCH,
            "micro_batch": 3,
            "learning_rate": 3e-3,
            "evaluate_every": 3,
            "checkpoint_every": 2 if lab.stop_after or lab.resume else 100,
            "engine": "torch",
            **lab.training,
        }
    )


def losses_of(lab: Lab) -> dict[str, LossConfig]:
    """The run's losses."""
    return {name: LossConfig.model_validate(values) for name, values in lab.losses.items()}


def build(lab: Lab) -> tuple[TrainingRun, Engine]:
    """The trial and its engine on this rank."""
    torch.set_num_threads(1)
    ranks, training, model = current_ranks(), settings_of(lab), student_of(lab)
    data = data_of(lab, model, rows=DOCUMENTS, seed=1, packed=training.packed)
    terms = build_terms(
        losses_of(lab),
        kinds=catalogue.LOSSES,
        steps=lab.steps,
        temperatures=TEMPERATURES,
        scales=state_scales(data.hidden),
        layers=pairs_of(losses_of(lab), LAYERS, model, catalogue.LOSSES),
    )
    pairs, plain = required_layers(terms)
    widths = {layer: hidden.values.shape[1] for layer, hidden in data.hidden.items()}
    module = copy.deepcopy(model.module)
    if training.activation_checkpointing:
        checkpoint_activations(module)
    bundle = StudentModule(module, make_projections(model, layers=pairs, widths=widths, seed=3), plain, fuse=True)
    if training.compile is not None:
        compile_module(bundle.computing, training.compile)
    trial = TrainingRun(
        name="student",
        url=f"{lab.folder}/{lab.trial}",
        curve=f"{lab.folder}/{lab.trial}/curve",
        data=data,
        rows=np.arange(data.rows),
        steps=lab.steps,
        seed=3,
        terms=terms,
        judge=token_learn.validator(data_of(lab, model, rows=14, seed=2, packed=training.packed)),
        training=training,
        rate=training.learning_rate[0],
        plan={},
    )
    return trial, build_engine(
        bundle, training, ranks, passes=Budget.of(training, group_of(terms)).passes(GLOBAL_BATCH, ranks.world)
    )


def run(lab: Lab) -> Ran:
    """Train on this rank, to the end."""
    trial, engine = build(lab)
    recorder = Recorder()
    best = train_run(trial, engine, current_ranks(), recorder, resume=lab.resume)
    engine.close()
    return Ran(curve=recorder.curve, best=best.record.to_dict(), weights=best.weights, saved=recorder.saved)


def run_all(labs: list[Lab]) -> list[Ran]:
    """Train several runs one after the other in one process."""
    return [run(lab) for lab in labs]


def run_cut(lab: Lab) -> Ran:
    """Train until stopped, then build everything anew and train the rest; returns the rest."""
    trial, engine = build(lab)
    try:
        train_run(trial, engine, current_ranks(), Recorder(lab.stop_after), resume=False)
    except TrainingStopped:
        engine.close()
        return run(replace(lab, stop_after=None, resume=True))
    raise AssertionError("the run was not stopped")


def run_all_cut(labs: list[Lab]) -> list[Ran]:
    """`run_cut` of several, one after the other in one process."""
    return [run_cut(lab) for lab in labs]


def reference(lab: Lab) -> list[dict[str, float]]:
    """By step, the loss and each of its terms as ``loss`` and ``loss_<name>``: a loop that shares nothing with the
    loss, the bundle or the engine but the order of documents and the rate.
    """
    torch.set_num_threads(1)
    model, training = student_of(lab), settings_of(lab)
    data = data_of(lab, model, rows=DOCUMENTS, seed=1)
    pairs = layer_pairs("uniform", LAYERS, model) if "hidden" in lab.losses else {}
    widths = {layer: hidden.values.shape[1] for layer, hidden in data.hidden.items()}
    projections = nn.ModuleDict(
        {str(ours): module for ours, module in make_projections(model, layers=pairs, widths=widths, seed=3).items()}
    )
    both = nn.ModuleDict({"student": copy.deepcopy(model.module), "projections": projections}).double()
    parameters = [p for p in both.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.0,
    )
    curve = []
    for step in range(lab.steps):
        rows = global_batch_at(3, step, data.rows, GLOBAL_BATCH)
        values = _means(lab, both, data, pairs, rows)
        total = sum((config.weight * values[name] for name, config in losses_of(lab).items()), torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip)
        rate = training.learning_rate[0] * rate_factor(
            step, steps=lab.steps, warmup=training.warmup, shape=training.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        curve.append({"loss": total.item(), **{f"loss_{name}": value.item() for name, value in values.items()}})
    return curve


def _means(
    lab: Lab, both: nn.ModuleDict, data: PositionExamples, pairs: dict[int, int], rows: Any
) -> dict[str, Tensor]:
    """Mean of each loss over the positions that count, of whole float64 logits, one document at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in lab.losses}
    for row in rows.tolist():
        offsets = data.encoded.features["input_ids"].offsets
        ids = torch.from_numpy(data.encoded.features["input_ids"].values[offsets[row] : offsets[row + 1]]).long()
        output = both["student"](input_ids=ids[None], use_cache=False, output_hidden_states=True)
        logits_PV = output.logits[0, :-1]
        for name, config in losses_of(lab).items():
            if name == "hard":
                found[name].append(-logits_PV.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]])
            elif not data.distil[row]:
                continue
            elif name == "hidden":
                found[name].append(_hidden(config, both, data, pairs, row, output.hidden_states))
            else:
                found[name].append(
                    torch.stack(
                        [
                            _divergence(name, config, data, data.stored[row], place, logits_V)
                            for place, logits_V in enumerate(logits_PV)
                        ]
                    )
                )
    return {name: torch.cat(values).mean() for name, values in found.items()}


def _hidden(
    config: LossConfig, both: nn.ModuleDict, data: PositionExamples, pairs: dict[int, int], row: int, states: Any
) -> Tensor:
    """Distance at each position, averaged over the pairs of layers."""
    distances = []
    for ours, theirs in pairs.items():
        hidden = data.hidden[theirs].take([int(data.stored[row])])
        wanted = torch.from_numpy(hidden.values[:-1]).double()
        made = both["projections"][str(ours)](states[ours][0, :-1])  # type: ignore[index]
        if config.settings.get("kind") == "mse":
            distances.append(((made - wanted) ** 2).mean(-1))
        else:
            distances.append(1 - (made * wanted).sum(-1) / made.norm(dim=-1) / wanted.norm(dim=-1))
    return torch.stack(distances).mean(0)


def _divergence(
    name: str, config: LossConfig, data: PositionExamples, stored: int, place: int, logits_V: Tensor
) -> Tensor:
    """One position's ``soft`` or ``teacher_hard``, as MATHS.md §1-3 writes it."""
    assert data.distributions is not None
    found = data.distributions.take([stored])
    at = slice(found.entry_offsets[place], found.entry_offsets[place + 1])
    ids, logp = torch.from_numpy(found.ids[at]).long(), torch.from_numpy(found.logp[at]).double()
    if name == "teacher_hard":
        return -logits_V.log_softmax(-1)[ids[logp.argmax()]]
    temperature = config.settings.get("temperature", 1.0)
    tail = math.exp(found.log_tail[place, found.temperatures.index(temperature)])
    p_S = (1 - tail) * (logp / temperature).softmax(-1)
    q_V = (logits_V / temperature).softmax(-1)
    if found.draws is not None:
        count = torch.from_numpy(found.draws.count[at]).double()
        # At a = 1: c/N of what was drawn from all, τ c/n of what was drawn from the tail; p where it is exact.
        mass = math.exp(found.draws.log_normaliser[place])
        weight_S = torch.where(count > 0, mass * count / found.draws.number, p_S)
        return (weight_S * (p_S.log() - q_V[ids].log())).sum()
    if not tail:
        return temperature**2 * _between(config, p_S, q_V[ids])
    outside_V = torch.ones_like(q_V).index_fill(0, ids, 0.0)
    p, q = torch.cat([p_S, torch.tensor([tail]).double()]), torch.cat([q_V[ids], (q_V * outside_V).sum()[None]])
    return temperature**2 * _between(config, p, q)


def _between(config: LossConfig, p: Tensor, q: Tensor) -> Tensor:
    """A divergence of two distributions over a few buckets."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    setting = config.settings.get("divergence", "forward_kl")
    name, parameters = (setting, {}) if isinstance(setting, str) else next(iter(setting.items()))
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        beta = parameters.get("beta", 0.5)
        middle = beta * p + (1 - beta) * q
        return beta * kl(p, middle) + (1 - beta) * kl(q, middle)
    if name == "skewed_kl":
        return kl(p, 0.1 * p + 0.9 * q)
    return kl(p, q)


def deepspeed(lab: Lab, stage: int, **training: Any) -> Lab:
    """The same run by DeepSpeed."""
    return replace(lab, training={**lab.training, "engine": "deepspeed", "zero_stage": stage, **training})
