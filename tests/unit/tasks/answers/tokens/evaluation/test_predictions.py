"""Language models over documents: the sums a document are those of a plain computation, whatever the batches."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.efficiency import further_rates
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.io.load import load_model
from ray_distill.tasks.answers.tokens import judge
from ray_distill.tasks.answers.tokens.evaluation import predictions
from ray_distill.tasks.answers.tokens.evaluation.measures import ALONE, BESIDE, BUCKETS, TAIL_TOP, measure
from ray_distill.tasks.answers.tokens.evaluation.predictions import encode_for_all, predict_documents
from ray_distill.tasks.catalogue import TASKS
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_causal_model

TASK = TASKS["causal_lm"]
BINS = 10
HOW = Resampling(seed=0, bootstrap=100, bins=BINS)
TEXTS = ["the cat sat on the mat", "a", "no", "an owl; " * 9, "Ünï 🎈", "nine lives, nine tails"]
CHAT = [
    json.dumps([{"role": "user", "content": ask}, {"role": "assistant", "content": say}])
    for ask, say in (("hello there", "good day"), ("why", "because it is so"), ("bye", "farewell"))
]


def rows_of(texts):
    return pa.table(
        {
            "row_id": pa.array([row_id(n) for n in range(len(texts))], pa.binary(16)),
            "text": texts,
            "count": pa.array(range(1, len(texts) + 1), pa.int64()),
            "locale": [("de", "en")[n % 2] for n in range(len(texts))],
        }
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [str(write_tiny_causal_model(root / str(seed), seed)) for seed in (0, 1, 2)]


def loaded(folders, **language):
    arms = ("teacher", "student", "champion")
    return {
        arm: load_model(TeacherConfig(model=folder, language=LanguageConfig(**language)), task="causal_lm")
        for arm, folder in zip(arms, folders, strict=True)
    }


@pytest.fixture(scope="module")
def models(folders):
    return loaded(folders)


def panel_of(models, **options):
    return Panel(**{"task": TASK, "models": models, "batch": 4, "bins": BINS, **options})


def predict(models, texts, *, batch=4, teacher="teacher", **options):
    return predict_documents(panel_of(models, batch=batch, reference=teacher), rows_of(texts), **options)


def log_probabilities(model, ids):
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].double().numpy()
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def plain_sums(student, teacher, ids, answered):
    """A document's sums in float64, position by position, without any of the code under test."""
    logq, logp = (log_probabilities(model, ids) for model in (student, teacher))
    found = dict.fromkeys([*ALONE, *BESIDE], 0.0)
    bins, buckets = np.zeros((3, BINS)), np.zeros((2, len(BUCKETS)))
    for place in range(len(ids) - 1):
        if not answered[place + 1]:
            continue
        q, p = np.exp(logq[place]), np.exp(logp[place])
        top, kl = np.argsort(-p)[:TAIL_TOP], float((p * (logp[place] - logq[place])).sum())
        right = q.argmax() == ids[place + 1]
        for name, value in (
            ("nll", -logq[place][ids[place + 1]]),
            ("correct", right),
            ("kl_from_teacher", kl),
            ("entropy", -(q * logq[place]).sum()),
            ("agreement", q.argmax() == p.argmax()),
            ("teacher_entropy", -(p * logp[place]).sum()),
            ("tail_gap", p[top].sum() - q[top].sum()),
        ):
            found[name] += float(value)
        bins[:, int(q.max() * BINS)] += 1, q.max(), right
        buckets[:, [start <= place < stop for start, stop in BUCKETS.values()].index(True)] += 1, kl
    return found | {
        "bin_tokens": bins[0],
        "bin_confidence": bins[1],
        "bin_correct": bins[2],
        "bucket_tokens": buckets[0],
        "bucket_kl_from_teacher": buckets[1],
    }


def check_sums(models, texts, used):
    tables = predict(models, texts)
    for arm, model in models.items():
        assert tables[arm]["row_id"].to_pylist() == [row_id(n) for n in used]
        assert tables[arm]["count"].to_pylist() == [n + 1 for n in used]
        for row, n in zip(tables[arm].to_pylist(), used, strict=True):
            features, _ = model.processor.language([texts[n]])
            answered = features["answered"].values
            assert row["tokens"] == answered[1:].sum()
            expected = plain_sums(model, models["teacher"], features["input_ids"].values.tolist(), answered)
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (arm, n, name)


def test_the_sums_are_those_of_a_plain_computation(models):
    """Each document alone and unpadded, in float64: the same; a text of one token is left out."""
    check_sums(models, TEXTS, [0, 2, 3, 4, 5])


def test_of_conversations_only_the_answers_count(folders):
    """What the user wrote, and every header, is read and not judged."""
    check_sums(loaded(folders, format="chat"), [*CHAT, "no JSON"], [0, 1, 2])


def test_what_is_found_does_not_depend_on_the_batches(models, monkeypatch):
    """One document at a time, all at once, few positions at a time, little memory: the same up to rounding."""
    whole = predict(models, TEXTS, batch=64)
    monkeypatch.setattr(predictions, "CHUNK_ELEMENTS", 7 * 264)
    monkeypatch.setattr(predictions, "LOGITS_BYTES", 4 * 264 * 30)
    for batch in (1, 64):
        parts = predict(models, TEXTS, batch=batch)
        for arm, table in whole.items():
            assert table["row_id"].equals(parts[arm]["row_id"])
            for name in ("nll", "entropy", "kl_from_teacher", "tail_gap"):
                assert np.allclose(table[name].to_numpy(), parts[arm][name].to_numpy(), rtol=1e-4, atol=1e-4), name


def test_batches_are_of_like_length_and_bounded(models, monkeypatch):
    """Each document once, the shortest first; a batch is padded to no more logits than allowed, or is one document."""
    encoded = encode_for_all(models, rows_of(TEXTS), task=TASK)
    lengths = np.diff(encoded.features["input_ids"].offsets)
    monkeypatch.setattr(predictions, "LOGITS_BYTES", 4 * 264 * 30)
    found = list(predictions.token_batches(panel_of(models, batch=2), encoded))
    assert sorted(np.concatenate(found).tolist()) == list(range(encoded.rows))
    assert [len(part) for part in found] == [2, 1, 1, 1] and lengths[found[-1][0]] == max(lengths) > 30
    assert lengths[np.concatenate(found)].tolist() == sorted(lengths.tolist())


def test_a_teacher_beside_itself_agrees_with_itself(models):
    """Zero KL, zero gaps, full agreement; also where its logits are so coarse that two tokens are equally likely."""
    coarse = replace(models["teacher"], module=Coarse(models["teacher"].module))
    found = measure(predict({"teacher": coarse}, TEXTS)["teacher"], HOW)
    for name, value in (("kl_from_teacher", 0.0), ("agreement", 1.0), ("entropy_gap", 0.0), ("tail_mass_gap", 0.0)):
        assert found[name].value == pytest.approx(value, abs=1e-6), name


class Coarse(torch.nn.Module):
    """A model that rounds its logits to whole numbers."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        return SimpleNamespace(logits=self.inner(input_ids=input_ids, attention_mask=attention_mask).logits.round())


class Answers(torch.nn.Module):
    """A model that gives every token the same logits."""

    def __init__(self, logits_V):
        super().__init__()
        self.logits_V = torch.nn.Parameter(logits_V)

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        return SimpleNamespace(logits=self.logits_V.expand(*input_ids.shape, -1))


def test_a_token_without_probability_costs_infinity_and_nothing_where_the_teacher_gives_it_none(models):
    """A student that rules out what the teacher does not: infinite KL. The other way round it is finite."""
    some, all_ = torch.zeros(264), torch.zeros(264)
    some[:132] = -np.inf
    narrow, wide = (replace(models["teacher"], module=Answers(logits)) for logits in (some, all_))
    found = predict({"teacher": wide, "student": narrow}, ["abc"])["student"]
    assert found["kl_from_teacher"].to_pylist() == [np.inf]
    found = predict({"teacher": narrow, "student": wide}, ["abc"])["student"].to_pylist()[0]
    assert found["kl_from_teacher"] == pytest.approx(found["tokens"] * np.log(2), rel=1e-5)
    assert found["tail_gap"] == pytest.approx(found["tokens"] * (64 / 132 - 64 / 264), rel=1e-4)


def test_a_model_that_answers_nan_is_named(models):
    """NaN is refused with the model's place, whether it is the teacher or another."""
    broken = replace(models["student"], module=Answers(torch.full((264,), np.nan)), url="s3://broken")
    for arms in ({"teacher": models["teacher"], "student": broken}, {"teacher": broken, "student": models["student"]}):
        with pytest.raises(EvaluationError, match="s3://broken answers with NaN"):
            predict(arms, TEXTS)


def test_models_padded_differently_are_measured_over_the_classes_that_both_have(models):
    """A student of 262 classes beside a teacher of 264: both have the figures of models cut to 262."""

    def over(teacher: int, student: int):
        sizes = {"teacher": teacher, "student": student}
        arms = {
            arm: replace(
                models[arm], module=Answers(torch.linspace(-low, low, 264)[:size]), space=AnswerSpace(size=size)
            )
            for (arm, size), low in zip(sizes.items(), (2.0, 1.0), strict=True)
        }
        return predict(arms, TEXTS)

    found, expected = over(264, 262), over(262, 262)
    for arm, table in expected.items():
        assert found[arm].equals(table)


def test_other_tokens_are_refused(models, tmp_path):
    """Another template of conversations, or fewer classes than tokens: both models are named, and what to do."""
    narrow = load_model(str(write_tiny_causal_model(tmp_path / "narrow", 0, vocab_size=200)), task="causal_lm")
    with pytest.raises(EvaluationError, match=r"narrow answers over 200 tokens, fewer than the 261 of the tokenizer"):
        predict({**models, "student": narrow}, TEXTS)
    processor = replace(models["student"].processor, tokens_fingerprint="other")
    with pytest.raises(EvaluationError, match="have different tokenizers"):
        predict({**models, "student": replace(models["student"], processor=processor)}, TEXTS)


def test_all_read_as_far_as_the_one_that_reads_least(models):
    """A champion of an older, shorter limit: every model is judged on the tokens that all can read."""
    short = replace(models["champion"], processor=replace(models["champion"].processor, max_length=5))
    tables = predict({**models, "champion": short}, TEXTS)
    assert tables["teacher"]["tokens"].to_pylist() == [4, 1, 4, 4, 4] == tables["champion"]["tokens"].to_pylist()


def test_what_cannot_be_used_is_said(models):
    """No usable document names the first reason; a slice may not have a sum's name; slices are carried over."""
    with pytest.raises(EvaluationError, match="none of the 2 documents can be used by .*: "):
        predict(models, ["", "x"])
    with pytest.raises(EvaluationError, match="the column tokens cannot be a slice"):
        predict(models, TEXTS, keep=("tokens",))
    assert predict(models, TEXTS, keep=("locale",))["student"]["locale"].to_pylist() == ["de", "de", "en", "de", "en"]


def test_without_a_teacher_each_is_measured_alone(models):
    """The columns that compare are absent."""
    table = predict({"student": models["student"]}, TEXTS, teacher=None)["student"]
    assert "kl_from_teacher" not in table.column_names and "nll" in table.column_names


def test_damaged_texts_are_measured_where_something_is_left_of_them(models):
    """The asked-for arms alone, the same documents for all; a text of which one token is left is left out for all."""
    panel = panel_of(models).only(("student", "teacher"))
    damaged = rows_of(["teh cat", "x", "", "on the mat"])
    tables = judge.answer_damaged(panel, damaged)
    assert list(tables) == ["teacher", "student"]
    assert all(table["row_id"].to_pylist() == [row_id(0), row_id(3)] for table in tables.values())
    assert set(TASK.answers.robust) <= set(measure(tables["student"], HOW))


def test_corruptions_are_opted_into_and_conversations_are_not_corrupted():
    """A letter mistyped in JSON is not a typo of the user's; each corruption costs passes over the test split."""
    config = SimpleNamespace(labels=SimpleNamespace(teacher=TeacherConfig(model="m")))
    possible = TASK.inputs.corruptions_of(config)
    assert set(possible) == {"typos", "case", "dropout"} and judge.default_corruptions(possible) == {}
    config.labels.teacher = TeacherConfig(model="m", language=LanguageConfig(format="chat"))
    assert TASK.inputs.corruptions_of(config) == {}


def test_a_timed_run_answers_every_document(models):
    """Also where a batch is run in parts; tokens a second are documents a second times tokens a document."""
    timed = judge.timed(panel_of(models, batch=2), rows_of([TEXTS[0], TEXTS[1], TEXTS[2]]))
    parts = timed.runs["student"](np.array([0, 1, 0], dtype=np.int64))
    assert sum(len(part) for part in parts) == 3 and timed.examples == 2
    speed = further_rates({"student": SimpleNamespace(examples_per_second=10.0)}, timed.rates, timed.examples)
    assert speed["student"]["tokens_per_second"].value == 10 * (len(TEXTS[0]) + 2) / 2
    assert speed["student"]["tokens_per_second"].n == 2
