"""Norms of each loss's gradient at the student's outputs: exact, over micro-batches, whole logits or a fused head."""

import copy
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LossConfig, TeacherConfig
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.models.io.load import load_model
from ray_distill.runtime.labelling.batching import answer_all
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.weighted_losses import Term, build_terms, combine, head_request, squares, to_device
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import open_teacher
from ray_distill.testing.models import write_tiny_causal_model

LOSSES = {
    "soft": LossConfig(weight=0.7),
    "hard": LossConfig(weight=0.0),
    "hidden": LossConfig(weight=3.0),
    "cka": LossConfig(group=4),
}


def terms_of(layers: dict[int, int]) -> tuple[Term, ...]:
    return build_terms(
        LOSSES, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers={"hidden": layers, "cka": layers}
    )


def rows(start: int, stop: int) -> tuple[StudentOutput, LossBatch]:
    """A part of one batch of eight."""
    generator = torch.Generator().manual_seed(0)

    def drawn(width: int) -> torch.Tensor:
        return torch.randn(8, width, generator=generator)[start:stop]

    output = StudentOutput(logits_BV=drawn(5), hidden={1: drawn(6)}, states={1: drawn(3)})
    n = stop - start
    return output, LossBatch(
        labels_B=torch.arange(8)[start:stop] % 5,
        distil_B=torch.arange(8)[start:stop] != 2,
        hidden={4: drawn(6)},
        example_weight_B=torch.ones(n),
        targets=SparseTargets(
            classes=5,
            ids_NK=torch.arange(5).expand(n, 5),
            logp_NK=drawn(5).log_softmax(-1),
            temperatures=(1.0,),
            log_tail_NT=torch.full((n, 1), -math.inf),
        ),
    )


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_norms_are_those_of_the_whole_batch(micro_batch: int) -> None:
    """Against autograd of each loss's mean in one pass over float64 outputs; the terms' own weights do not matter."""
    terms = terms_of({1: 4})
    whole, batch = rows(0, 8)
    leaves = [t.double().requires_grad_() for t in (whole.logits_BV, whole.hidden[1], whole.states[1])]
    exact = StudentOutput(logits_BV=leaves[0], hidden={1: leaves[1]}, states={1: leaves[2]})
    weights = [float(term.loss.weight(batch)) for term in terms]
    wanted = []
    for term, weight in zip(terms, weights, strict=True):
        gradients = torch.autograd.grad(term.loss(exact, batch) / weight, leaves, materialize_grads=True)
        wanted.append(math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients)))
    found = [
        squares(terms, *rows(start, start + micro_batch), step=0, weights=weights) for start in range(0, 8, micro_batch)
    ]
    norms = torch.tensor([[float(square) for square in part] for part in found]).double().sum(0).sqrt()
    assert norms.tolist() == pytest.approx(wanted, rel=1e-5)
    assert min(wanted) > 0


def data_of(folder: Path, vocabulary: int) -> PositionExamples:
    write_tiny_causal_model(folder / "teacher", seed=1, initializer_range=0.5)
    teacher = open_teacher(TeacherConfig(model=str(folder / "teacher")), task="causal_lm")
    table = pa.table(
        {
            "row_id": pa.array([bytes([row]) * 16 for row in range(4)], pa.binary(16)),
            "text": ["a few words", "and more of them", "xyz", "the last"],
        }
    )
    request = LabelRequest(estimator="topk", k=6, temperatures=(1.0,), pool="token", layers=(2,))
    ids, signal, _ = answer_all(teacher, teacher.task.inputs.encode(table, teacher.model.processor), request, batch=4)
    return build_examples(
        table,
        answers=TokenFormat(task=TASKS["causal_lm"], vocabulary=vocabulary),
        processor=teacher.model.processor,
        labels=(ids, signal),
    )


def test_a_fused_heads_norms_are_at_the_final_states(tmp_path: Path) -> None:
    """What autograd gives there through whole logits; losses of hidden states stay at theirs, in the same step."""
    model = load_model(str(write_tiny_causal_model(tmp_path / "student", seed=0)), task="causal_lm")
    data = data_of(tmp_path, model.vocabulary)
    inputs, stored = data.batch(np.arange(4))
    batch = to_device(stored, torch.device("cpu"))
    terms = terms_of({1: 2})
    weights = [float(term.loss.weight(batch)) for term in terms]
    projections = make_projections(model, layers={1: 2}, widths={2: data.hidden[2].values.shape[1]}, seed=0)
    bundle = StudentModule(copy.deepcopy(model.module), projections, plain=(1,), fuse=True)
    caught: list[torch.Tensor] = []
    hook = bundle.student.get_submodule("lm_head").register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    logits, hidden, _, states = bundle(inputs)
    hook.remove()
    wanted = []
    for term, weight in zip(terms, weights, strict=True):
        at = [caught[0]] if term.name in ("soft", "hard") else [*hidden.values(), *states.values()]
        value = term.loss(StudentOutput(logits_BV=logits, hidden=hidden, states=states), batch) / weight
        # A projected layer is made of the plain one: only what the loss itself reads counts.
        own = {"hidden": hidden[1], "cka": states[1]}.get(term.name, at[0])
        wanted.append(float(torch.autograd.grad(value, own, retain_graph=True)[0].norm()))
    logits, hidden, fused, states = bundle(inputs, head_request(terms, batch, step=0, weights=weights, norms=True))
    output = StudentOutput(logits_BV=logits, hidden=hidden, fused=fused, states=states)
    found = squares(terms, output, batch, step=0, weights=weights)
    assert [math.sqrt(float(square)) for square in found] == pytest.approx(wanted, rel=1e-4)
    combine(terms, output, batch, step=0, weights=weights)[0].backward()
    unasked = bundle(inputs, head_request(terms, batch, step=0, weights=weights))[2]
    assert unasked is not None and len(unasked[2]) == 0 and torch.equal(unasked[0], fused[0])
