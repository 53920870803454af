"""The vLLM engine without vLLM: what it refuses, and how its flat log-probabilities become labels."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import LabelsConfig, TeacherConfig
from ray_distill.errors import ConfigError, LabelError, ModelError, TeacherRefused
from ray_distill.labels.model import rowids
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.signal import signal_of
from ray_distill.labels.model.validity import unusable
from ray_distill.models.io.load import load_processor
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers import vllm_teacher
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.engines import engine_of, identify, refuse_classes, refuse_labels
from ray_distill.teachers.vllm_reduce import LEAST_TAIL, flat_of, log_tail, reduce_flat
from ray_distill.teachers.vllm_teacher import VllmIdentity, VllmTeacher, vllm_version
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_causal_model

V = 264


def _labels(teacher: dict[str, Any] | None = None, **changes: Any) -> LabelsConfig:
    values = {"signal": {"estimator": "topk", "k": 8}} | changes
    return LabelsConfig.model_validate(
        {"teacher": {"model": "s3://models/big", "engine": "vllm"} | (teacher or {}), **values}
    )


@pytest.mark.parametrize(
    ("labels", "task", "reason"),
    [
        (_labels(signal={"estimator": "dense"}), "causal_lm", "estimator is dense, but of every class"),
        (_labels(signal={"estimator": "sampled"}), "causal_lm", "estimator is sampled, but vLLM draws"),
        (_labels(signal={"estimator": "hybrid"}), "causal_lm", "estimator is hybrid, but vLLM cannot draw"),
        (_labels(signal={"estimator": "topk", "temperatures": [1, 2, 4]}), "causal_lm", "temperatures has 2, 4, and"),
        (_labels(hidden={"layers": [-1]}), "causal_lm", r"layers is \[-1\], but"),
        (_labels(), "text_classification", "task is text_classification, and vLLM scores texts"),
        (_labels({"model": "package:teacher"}), "causal_lm", "it is a module:function"),
        (_labels({"head": {}}), "causal_lm", "head fits a classifier"),
        (_labels({"device": "spread"}), "causal_lm", "device is spread, but vLLM chooses"),
        (
            _labels({"vllm": {"tensor_parallel_size": 4}}, resources={"gpus": 1}),
            "causal_lm",
            "size is 4, but .*gpus is 1",
        ),
    ],
)
def test_what_it_cannot_give_is_refused_from_settings_alone(labels: LabelsConfig, task: str, reason: str) -> None:
    """Each with its own reason and a way out; the same settings pass where transformers runs the model."""
    with pytest.raises(TeacherRefused, match=reason) as refused:
        refuse_labels(labels, task=task)
    assert "s3://models/big" in str(refused.value) or "package:teacher" in str(refused.value)
    assert "use engine transformers" in str(refused.value)
    teacher = labels.teacher.model_copy(update={"engine": "transformers"})
    refuse_labels(labels.model_copy(update={"teacher": teacher}), task=task)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    """Nobody mends a config one error at a time."""
    with pytest.raises(TeacherRefused) as refused:
        refuse_labels(
            _labels(signal={"estimator": "dense", "temperatures": [2]}, hidden={"layers": [0]}),
            task="image_classification",
        )
    assert all(name in str(refused.value) for name in ("task", "estimator", "temperatures", "layers"))


def test_what_it_can_give_passes() -> None:
    """The k likeliest at T = 1 of a language model, on as many GPUs as share it; and no other estimator is compared."""
    refuse_labels(_labels({"vllm": {"tensor_parallel_size": 2}}, resources={"gpus": 2}), task="causal_lm")
    assert engine_of(_labels().teacher).estimators == {"categorical": ("topk",)}
    assert "dense" in engine_of(TeacherConfig(model="any")).estimators["categorical"]


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError, match="labels.teacher.engine: unknown 'vlm'; the engines are transformers, vllm"):
        refuse_labels(_labels({"engine": "vlm"}), task="causal_lm")


def test_more_classes_than_there_are_tokens_are_refused() -> None:
    """When the vocabulary is known; all of its tokens are not too many."""
    refuse_classes(_labels(), 8)
    with pytest.raises(TeacherRefused, match="k is 8, but it has 7 tokens"):
        refuse_classes(_labels(), 7)


@pytest.mark.parametrize(
    ("vllm", "message"),
    [
        ({"python": "venv/bin/python"}, "must be an absolute path"),
        ({"max_num_batched_tokens": 32, "max_num_seqs": 64}, "max_num_batched_tokens 32 is less"),
    ],
)
def test_settings_that_cannot_work_are_refused(vllm: dict[str, Any], message: str) -> None:
    """When the config is read."""
    with pytest.raises(ValueError, match=message):
        _labels({"vllm": vllm})


def _flat(parts: list[tuple[int, list[int], list[float]]]) -> SimpleNamespace:
    """vLLM's container: at each token the actual one with a log-probability, then the likeliest."""
    ids = [token for actual, likeliest, _ in parts for token in (actual, *likeliest)]
    logp = [value for _, _, values in parts for value in values]
    return SimpleNamespace(token_ids=ids, logprobs=logp)


def _output(tokens: list[int], prompt: list[tuple[int, list[int], list[float]]], written: Any) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_token_ids=tokens, prompt_logprobs=_flat(prompt), outputs=[SimpleNamespace(logprobs=_flat([written]))]
    )


def test_the_actual_token_is_dropped_and_the_likeliest_stand_by_id() -> None:
    """Outside of the top k, within it (twice in vLLM's list), and tied with another: k entries at each token.

    The first token of a prompt has nothing: token t's answer is what stands at t + 1, the last one's what was written.
    """
    outputs = [
        _output(
            [5, 6, 7],
            [(6, [3, 1], [-6.0, -0.5, -1.5]), (7, [7, 2], [-0.25, -0.25, -2.0])],
            (9, [9, 4], [-1.0, -1.0, -1.0]),
        ),
        _output([8], [], (0, [0, 8], [-0.125, -0.125, -3.0])),
    ]
    found = flat_of(outputs, k=2)
    assert found.row_offsets.tolist() == [0, 3, 4]
    labels = reduce_flat(
        found,
        np.array([0, 2, 3]),
        row_offsets=np.array([0, 2, 3]),
        position=np.array([0, 2, 0], np.int32),
        vocabulary=10,
    )
    assert labels.ids.tolist() == [1, 3, 4, 9, 0, 8] and labels.entry_offsets.tolist() == [0, 2, 4, 6]
    assert labels.logp.tolist() == [-1.5, -0.5, -1.0, -1.0, -0.125, -3.0]
    assert labels.position.tolist() == [0, 2, 0] and labels.classes == 10 and labels.temperatures == (1.0,)
    assert np.isnan(labels.entropy).all() and not unusable(signal_of(distributions=labels))
    tails = 1 - np.exp([[-1.5, -0.5], [-1.0, -1.0], [-0.125, -3.0]]).sum(axis=1)
    np.testing.assert_allclose(np.exp(labels.log_tail[:, 0]), np.maximum(tails, LEAST_TAIL), rtol=1e-6)


def test_another_number_of_log_probabilities_is_an_error() -> None:
    """A release that adds or leaves out something must not shift every label by one."""
    with pytest.raises(LabelError, match="4 log-probabilities at 2 tokens, expected 3 at each"):
        flat_of([_output([5, 6], [(6, [], [-6.0])], (9, [9, 4], [-1.0, -1.0, -1.0]))], k=2)


def test_a_tail_by_difference_is_as_exact_as_it_says() -> None:
    """From float32 log-probabilities of a large vocabulary, as vLLM takes them: never above what can be there."""
    logits = 4 * torch.randn(400, 50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:200] *= torch.linspace(1, 20, 200, dtype=torch.float64)[:, None]  # down to tails of nothing
    exact = logits.log_softmax(-1).sort(-1, descending=True).values
    logp = logits.float().log_softmax(-1).sort(-1, descending=True).values[:, :64].numpy()
    found, expected = np.exp(log_tail(logp, 50_000).astype(np.float64)), exact[:, 64:].exp().sum(-1).numpy()
    assert np.abs(found - expected).max() <= LEAST_TAIL
    assert (found <= 49_936 * np.exp(logp[:, -1].astype(np.float64)) * (1 + 1e-6)).all()
    assert expected.min() < 1e-12 and found.min() < 1e-9


def test_a_head_that_sums_to_one_or_more_keeps_the_least_tail() -> None:
    """It cannot be told from one that holds nearly all; unless nothing is outside, then there is no tail."""
    logp = np.log(np.array([[0.6, 0.4], [0.6, 0.400001]], np.float32))
    np.testing.assert_allclose(np.exp(log_tail(logp, 10)), LEAST_TAIL, rtol=1e-6)
    assert (log_tail(logp, 2) == -np.inf).all()
    steep = np.array([[0.0, -40.0]], np.float32)
    np.testing.assert_allclose(log_tail(steep, 10), np.log(8) - 40, rtol=1e-6)


def test_an_answer_of_nan_is_not_usable() -> None:
    """It comes back as it is, and goes to quarantine: the missing entropies do not hide it."""
    outputs = [_output([5], [], (9, [9, 4], [np.nan, np.nan, -1.0])), _output([5], [], (9, [9, 4], [-1.0, -1.0, -2.0]))]
    labels = reduce_flat(
        flat_of(outputs, k=2),
        np.array([0, 1]),
        row_offsets=np.array([0, 1, 2]),
        position=np.zeros(2, np.int32),
        vocabulary=10,
    )
    assert list(unusable(signal_of(distributions=labels))) == [0]


class FakeEngine:
    """Answers as ``vllm.LLM``: the likeliest at a token are functions of it and its place."""

    def __init__(self, wrong: bool = False) -> None:
        self.wrong = wrong

    def generate(self, prompts: list[dict[str, list[int]]], parameters: int, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        return [self._output(prompt["prompt_token_ids"], parameters) for prompt in prompts]

    def _output(self, tokens: list[int], k: int) -> SimpleNamespace:
        def said(place: int) -> tuple[int, list[int], list[float]]:
            first = tokens[place] % 100 + place
            actual = tokens[place + 1] if place + 1 < len(tokens) else first
            return actual, list(range(first, first + k)), [-9.0, *(-1.0 - number for number in range(k))]

        given = [*tokens, 0] if self.wrong else tokens
        return _output(given, [said(place) for place in range(len(tokens) - 1)], said(len(tokens) - 1))


def _teacher(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> VllmTeacher:
    monkeypatch.setattr(vllm_teacher, "scoring", lambda k: k)
    identity = VllmIdentity(
        model="tiny", fingerprint="f", space=AnswerSpace(size=V), tokens="t", length=128, describe={}
    )
    return VllmTeacher(identity=identity, task=get_task("causal_lm"), engine=engine)


def _encoded(folder: Path, texts: list[str], **teacher: Any) -> Encoded:
    processor = load_processor(TeacherConfig(model=str(folder), **teacher), task="causal_lm")
    ids = pa.array([row_id(number) for number in range(len(texts))], rowids.ROW_ID)
    return get_task("causal_lm").inputs.encode(pa.table({"row_id": ids, "text": texts}), processor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_causal_model(tmp_path_factory.mktemp("models") / "causal", seed=0)


@pytest.mark.parametrize("teacher", [{}, {"language": {"format": "chat"}}])
def test_every_learnt_token_gets_the_answer_of_the_token_before_it(
    folder: Path, teacher: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only some tokens of a conversation are learnt: keyed by the positions of the other engine."""
    texts = (
        ["ab", "a longer text"]
        if not teacher
        else ['[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]'] * 2
    )
    encoded = _encoded(folder, texts, **teacher)
    found = (
        _teacher(monkeypatch, FakeEngine())
        .answer(encoded, LabelRequest(estimator="topk", k=3, temperatures=(1.0,)))
        .distributions
    )
    answered = get_task("causal_lm").answers.store.positions(encoded)
    assert found is not None and answered is not None
    assert found.row_offsets.tolist() == answered.offsets.tolist()
    assert found.position.tolist() == answered.values.tolist()
    tokens = encoded.features["input_ids"]
    read = [
        tokens.values[tokens.offsets[row] + place] % 100 + place
        for row in range(len(texts))
        for place in answered.values[answered.offsets[row] : answered.offsets[row + 1]]
    ]
    assert found.ids.reshape(-1, 3)[:, 0].tolist() == read


def test_it_answers_to_no_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of which every row was rejected have an answer too."""
    found = (
        _teacher(monkeypatch, FakeEngine())
        .answer(_encoded(folder, []), LabelRequest(estimator="topk", k=3, temperatures=(1.0,)))
        .distributions
    )
    assert found is not None and (found.rows, found.classes, len(found.ids)) == (0, V, 0)


def test_it_refuses_when_it_is_asked_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a caller has checked."""
    teacher = _teacher(monkeypatch, FakeEngine())
    for changes in ({"estimator": "dense"}, {"temperatures": (1.0, 2.0)}, {"layers": (1,)}, {"k": V + 1}):
        request = LabelRequest(**({"estimator": "topk", "k": 3, "temperatures": (1.0,)} | changes))
        with pytest.raises(TeacherRefused, match="use engine transformers"):
            teacher.answer(_encoded(folder, ["ab"]), request)


def test_answers_to_other_texts_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is out of step must not label one text with the distributions of another."""
    with pytest.raises(LabelError, match="out of step"):
        _teacher(monkeypatch, FakeEngine(wrong=True)).answer(
            _encoded(folder, ["ab"]), LabelRequest(estimator="topk", k=3, temperatures=(1.0,))
        )


def test_who_it_is_follows_from_files_and_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint, tokens, dtype, vLLM's version and its steps; not its share of the memory, nor its interpreter."""
    monkeypatch.setattr(vllm_teacher, "vllm_version", lambda: "0.32.0")

    def known(**settings: Any) -> Any:
        return identify(TeacherConfig(model=str(folder), engine="vllm", **settings), task="causal_lm")

    one = known()
    assert (one.space, one.states, one.length) == (AnswerSpace(size=V), 0, 128)
    assert one.tokens == load_processor(TeacherConfig(model=str(folder)), task="causal_lm").tokens_fingerprint
    assert one.describe["engine"] == "vllm 0.32.0"
    same = known(vllm={"python": "/opt/vllm/bin/python", "gpu_memory_utilization": 0.5})
    others = [
        known(dtype="bfloat16"),
        known(max_length=64),
        known(vllm={"max_num_seqs": 8}),
        known(language={"format": "chat"}),
    ]
    monkeypatch.setattr(vllm_teacher, "vllm_version", lambda: "0.33.0")
    assert same.fingerprint == one.fingerprint
    assert len({one.fingerprint, known().fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_missing_vllm_is_said_with_the_way_to_get_it() -> None:
    """This environment has none."""
    with pytest.raises(ModelError, match=r"no vLLM in this environment: .*labels.teacher.vllm.python"):
        vllm_version()


def test_checkpoints_that_it_reads_otherwise_are_refused(folder: Path, tmp_path: Path) -> None:
    """One that a function built; and one whose files are others than those that are pinned."""
    made = tmp_path / "made"
    made.mkdir()
    for path in folder.iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    (made / "ray_distill.json").write_text('{"factory": {"name": "package:build", "arguments": {}}}')
    with pytest.raises(ModelError, match="built by a module:function"):
        identify(TeacherConfig(model=str(made), engine="vllm"), task="causal_lm")
    with pytest.raises(ModelError, match="have changed"):
        identify(TeacherConfig(model=str(folder), engine="vllm", revision="sha256:" + 64 * "0"), task="causal_lm")
