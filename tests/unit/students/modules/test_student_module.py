"""The module that is trained: layers paired, states pooled or taken at places, a head fused with losses or whole."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from torch import Tensor, nn

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.format.arrow_tables import empty_signal
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.cross_entropy import Hard
from ray_distill.losses.fused import FusedHead, HeadRequest, Part
from ray_distill.models.io.load import load_model
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.loop.validation import Score
from ray_distill.students.modules.student_module import PLACES, StudentModule, layer_pairs, make_projections
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.answers.tokens import learn as token_learn
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Batch
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_text_model

V = 264
INPUTS: Batch = {
    "input_ids": torch.tensor([[20, 21, 22, 23], [30, 31, 0, 0]]),
    PLACES: torch.tensor([0, 2, 4]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}
LABELS = torch.tensor([21, 23, 31])
HARD = HeadRequest(
    parts=(Part(loss=Hard(), factor=0.5),),
    batch=LossBatch(
        labels_B=LABELS, distil_B=torch.ones(3, dtype=torch.bool), example_weight_B=torch.tensor([1.0, 1.0, 2.0])
    ),
)


def llama(folder: Path, **overrides: Any) -> Any:
    return load_model(str(write_tiny_causal_model(folder, seed=0, **overrides)), task="causal_lm")


class Plain(nn.Module):
    """As a ``module:function`` gives it: it knows neither a cache nor a body of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, 8), nn.Linear(8, V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        states = self.embedding(input_ids).cumsum(1)
        return SimpleNamespace(logits=self.head(states), hidden_states=(states,) if output_hidden_states else None)


def granite() -> nn.Module:
    config = transformers.GraniteConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        logits_scaling=8.0,
        pad_token_id=0,
    )
    module: nn.Module = transformers.GraniteForCausalLM(config)
    return module


@pytest.mark.parametrize("tied", [False, True])
def test_a_fused_head_keeps_the_students_weights_and_names(tmp_path: Path, tied: bool) -> None:
    """Its state fits the plain model and back; a head tied to the embedding is still the same parameter."""
    model = llama(tmp_path, tie_word_embeddings=tied)
    student = copy.deepcopy(model.module)
    bundle = StudentModule(student, {}, fuse=True)
    assert isinstance(student.get_submodule("lm_head"), FusedHead) and bundle.fused == ("model", "lm_head")
    assert set(student.state_dict()) == set(model.module.state_dict())
    model.module.load_state_dict(student.state_dict())
    embedding = student.get_parameter("model.embed_tokens.weight")
    assert (student.get_parameter("lm_head.weight") is embedding) == tied
    assert sorted(name for name, _ in bundle.named_parameters())[0].startswith("student.")


def test_answers_are_the_models_at_the_places(tmp_path: Path) -> None:
    """Logits of the asked tokens, the projected states there, and losses of the same logits without them."""
    model = llama(tmp_path)
    with torch.no_grad():
        plain = model.module(
            input_ids=INPUTS["input_ids"], attention_mask=INPUTS["attention_mask"], output_hidden_states=True
        )
    bundle = StudentModule(copy.deepcopy(model.module), {1: nn.Linear(32, 5), 2: nn.Identity()}, fuse=True)
    logits, hidden, none, _ = bundle(INPUTS)
    expected = plain.logits.flatten(0, 1)[INPUTS[PLACES]]
    torch.testing.assert_close(logits, expected)
    assert none is None and sorted(hidden) == [1, 2] and hidden[1].shape == (3, 5)
    torch.testing.assert_close(hidden[2], plain.hidden_states[2].flatten(0, 1)[INPUTS[PLACES]])
    empty, _, fused, _ = bundle(INPUTS, HARD)
    assert empty.shape == (3, 0) and fused is not None
    wanted = Hard()(StudentOutput(logits_BV=expected), HARD.batch)
    torch.testing.assert_close(fused[1][0], wanted)
    torch.testing.assert_close(fused[0], 0.5 * wanted)
    assert PLACES in INPUTS, "the batch is left as it was"


@pytest.mark.parametrize("make", [Plain, granite])
def test_a_head_that_cannot_be_fused_gives_logits(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Also one of a module that knows no ``use_cache``; a warning says why, and the gradients reach all of it."""
    torch.manual_seed(0)
    student = make()
    with caplog.at_level(logging.WARNING):
        bundle = StudentModule(student, {0: nn.Identity()}, fuse=True)
    assert "the student's head is not fused" in caplog.text and type(student).__name__ in caplog.text
    logits, hidden, fused, _ = bundle(INPUTS, HARD)
    assert fused is None and logits.shape == (3, V) and hidden[0].shape[0] == 3
    Hard()(StudentOutput(logits_BV=logits), HARD.batch).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def data_of(processor: Any, labelled: Any = None) -> PositionExamples:
    table = pa.table({"row_id": pa.array([b"a" * 16, b"b" * 16], pa.binary(16)), "text": ["some text", "other"]})
    return build_examples(
        table,
        answers=TokenFormat(task=TASKS["causal_lm"], vocabulary=V),
        processor=processor,
        labels=labelled,
        name="validation",
    )


def score(model: Any, data: PositionExamples, batch: int) -> Score:
    engine = build_engine(
        StudentModule(copy.deepcopy(model.module), {}, fuse=True),
        TrainingConfig(engine="torch"),
        Ranks(rank=0, world=1),
        passes=1,
    )
    return token_learn.validator(data).score(engine, Ranks(rank=0, world=1), Budget(rows=batch))


def test_students_are_judged_by_every_true_token(tmp_path: Path) -> None:
    """The mean over tokens, not over documents or batches; without labels there is no KL, not one of 0."""
    model = llama(tmp_path)
    data = data_of(model.processor)
    nll = []
    for row in range(2):
        inputs, batch = data.batch(torch.tensor([row]).numpy())
        logits = model.module(input_ids=inputs["input_ids"]).logits.flatten(0, 1)[inputs[PLACES]]
        nll.append(-logits.detach().log_softmax(-1).gather(1, batch.labels_B[:, None])[:, 0])
    for size in (1, 2):
        found = score(model, data, size)
        assert found.metrics == {"validation_nll": found.value}
        assert found.value == pytest.approx(float(torch.cat(nll).mean()), rel=1e-5)
    parts = parts_of([DistributionsSpec(space=AnswerSpace(size=V))])
    manifest = StoreManifest(task="causal_lm", teacher=TeacherIdentity(fingerprint="t"), parts=parts)
    nobody = (pa.array([], pa.binary(16)), empty_signal(manifest))
    assert set(score(model, data_of(model.processor, nobody), 2).metrics) == {"validation_nll"}


def student(layers: int) -> Any:
    """All that pairing asks of a model."""
    return SimpleNamespace(layers=layers, url="s")


@pytest.mark.parametrize(
    ("stored", "layers", "pairs"),
    [
        ((3, 6), 2, {1: 3, 2: 6}),
        ((6, 12), 4, {2: 6, 4: 12}),
        ((1, 2, 3, 4, 5, 6), 2, {1: 3, 2: 6}),
        ((12,), 3, {3: 12}),
        ((2, 4, 6), 4, {1: 2, 3: 4, 4: 6}),
    ],
)
def test_uniform_spreads_the_pairs_and_ends_with_the_last(
    stored: tuple[int, ...], layers: int, pairs: dict[int, int]
) -> None:
    """As many pairs as possible, evenly over both sides."""
    assert layer_pairs("uniform", stored, student(layers)) == pairs


def test_last_and_explicit() -> None:
    """Only the last pair, or exactly what is named."""
    assert layer_pairs("last", (3, 9), student(4)) == {4: 9}
    assert layer_pairs({0: 3, 2: 9}, (3, 9), student(4)) == {0: 3, 2: 9}


def test_layers_that_are_not_there_are_named() -> None:
    """Nothing stored, no such layer of either side, a student without hidden states."""
    with pytest.raises(ConfigError, match="the label store has no hidden states"):
        layer_pairs("uniform", (), student(2))
    with pytest.raises(ConfigError, match="the student has layers 0 to 2, found 3"):
        layer_pairs({3: 6}, (6,), student(2))
    with pytest.raises(ConfigError, match=r"the store has the teacher layers \[6\], found 5"):
        layer_pairs({1: 5}, (6,), student(2))
    with pytest.raises(ConfigError, match="the student s returns no hidden states"):
        layer_pairs("last", (6,), student(-1))


@pytest.mark.parametrize(("pool", "shape"), [("mean", (2, 7)), ("cls", (2, 7)), ("last", (2, 7)), ("token", (2, 4, 7))])
def test_states_are_pooled_and_projected(tmp_path: Path, pool: str, shape: tuple[int, ...]) -> None:
    """The student's states come out at the teacher's width, and padding does not change an example's."""
    model = load_model(str(write_tiny_text_model(tmp_path, ("a", "b"), seed=1)), task="text_classification")
    bundle = StudentModule(
        model.module, make_projections(model, layers={1: 6, 2: 12}, widths={6: 7, 12: 7}, seed=0), pool=pool
    )
    ids, mask = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        logits, hidden, _, _ = bundle({"input_ids": ids, "attention_mask": mask})
        _, short, _, _ = bundle({"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]})
    assert logits.shape == (2, 2) and sorted(hidden) == [1, 2]
    assert hidden[2].shape == shape
    expected = short[2][0] if pool != "token" else short[2][0, :2]
    found = hidden[2][1] if pool != "token" else hidden[2][1, :2]
    assert torch.allclose(found, expected, atol=1e-5)


def test_first_projections_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """Ranks and reruns start from the same weights, whatever torch's own generator holds."""
    model = load_model(str(write_tiny_text_model(tmp_path, ("a", "b"), seed=1)), task="text_classification")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))
        bundle = StudentModule(
            model.module, make_projections(model, layers={1: 6}, widths={6: 7}, seed=seed), pool="mean"
        )
        made.append(bundle.projections["1"].weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
