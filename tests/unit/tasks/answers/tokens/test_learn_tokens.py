"""Documents joined with their labels, token by token: in batches padded or packed, and what is refused."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal, Vectors, signal_of
from ray_distill.losses.base import LossBatch
from ray_distill.models.io.load import load_model
from ray_distill.models.text.lm_processor import LanguageProcessor, language_processor
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.modules.student_module import PLACES
from ray_distill.students.objective.validate_losses import check_retained_mass
from ray_distill.tasks.answers.tokens.learn import TokenFormat, check_tokens, check_vocabulary
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Batch
from ray_distill.testing.models import tiny_causal_tokenizer, write_tiny_causal_model

V = 264
CHAT = LanguageConfig(format="chat")
TEXTS = ["abcd", "ef", "ghijklm", "nop"]


def row_id(number: int) -> bytes:
    """An id that starts with the number, so that order by id is order by number."""
    return number.to_bytes(1, "big") + b"\0" * 15


def snapshot(texts: dict[int, str]) -> pa.Table:
    return pa.table({"row_id": pa.array([row_id(n) for n in texts], pa.binary(16)), "text": list(texts.values())})


def processor(max_length: int = 128, settings: LanguageConfig | None = None) -> LanguageProcessor:
    return language_processor(tiny_causal_tokenizer(), max_length, settings or LanguageConfig())


def labels_of(texts: dict[int, str], *, drawn: bool = False) -> tuple[pa.Array, Signal]:
    """Two tokens a position: 10 × row + position and the one after it, at 0.6 and 0.3; states hold row and token."""
    positions = [len(text) - 1 for text in texts.values()]
    row_P = np.repeat(np.array(list(texts)), positions)
    at_P = np.concatenate([np.arange(count) for count in positions]).astype(np.int32)
    first_P = (10 * row_P + at_P).astype(np.int32)
    count = len(at_P)
    draws = Draws(
        number=9,
        exponent=0.5,
        count=np.tile(np.array([0, 4], np.int32), count),
        log_normaliser=first_P.astype(np.float32),
    )
    tokens = [len(text) for text in texts.values()]
    states = [[row, token] for row, length in zip(texts, tokens, strict=True) for token in range(length)]
    return pa.array([row_id(n) for n in texts], pa.binary(16)), signal_of(
        distributions=Distributions(
            classes=V,
            temperatures=(1.0, 2.0),
            row_offsets=_ends(positions),
            position=at_P,
            entry_offsets=2 * np.arange(count + 1, dtype=np.int64),
            ids=np.stack([first_P, first_P + 1], 1).reshape(-1),
            logp=np.log(np.tile([0.6, 0.3], count)).astype(np.float32),
            log_tail=np.log(np.tile([[0.1, 0.7]], (count, 1))).astype(np.float32),
            entropy=np.ones(count, np.float32),
            draws=draws if drawn else None,
        ),
        hidden={2: Vectors(offsets=_ends(tokens), values=np.array(states, np.float32))},
    )


def _ends(counts: list[int]) -> Any:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def build(texts: dict[int, str], labels: tuple[pa.Array, Signal] | None, **changes: Any) -> PositionExamples:
    answers: dict[str, Any] = {
        "task": TASKS["causal_lm"],
        "vocabulary": V,
        **{name: changes.pop(name) for name in ("vocabulary", "pool", "packed") if name in changes},
    }
    values: dict[str, Any] = {"processor": processor(), **changes}
    return build_examples(snapshot(texts), answers=TokenFormat(**answers), labels=labels, **values)


def numbered(*numbers: int) -> dict[int, str]:
    return {number: TEXTS[number] for number in numbers}


def read(inputs: Batch) -> tuple[str, str]:
    """The tokens at the answered places, and those that follow them."""
    flat, places = inputs["input_ids"].flatten(), inputs[PLACES]
    words = tiny_causal_tokenizer()
    return words.decode(flat[places]), words.decode(flat[places + 1])


def test_each_document_gets_its_own_labels_whatever_the_order() -> None:
    """Snapshot and label set in different orders: at each token its row's classes, states and following token."""
    found = build(numbered(3, 0, 1), labels_of(numbered(1, 3, 0)))
    inputs, batch = found.batch(np.array([2, 0, 1]))
    assert [id_.as_py()[0] for id_ in found.encoded.row_ids] == [0, 1, 3]
    assert read(inputs) == ("noabce", "opbcdf")
    assert tiny_causal_tokenizer().decode(batch.labels_B) == "opbcdf"
    assert batch.targets is not None and batch.targets.classes == V
    assert batch.targets.ids_NK.tolist() == [[n, n + 1] for n in (30, 31, 0, 1, 2, 10)]
    assert torch.allclose(batch.targets.logp_NK.exp(), torch.tensor([0.6, 0.3]))
    assert batch.hidden[2].tolist() == [[3, 0], [3, 1], [0, 0], [0, 1], [0, 2], [1, 0]]
    assert batch.distil_B.all() and batch.example_weight_B.tolist() == [1] * 6


@pytest.mark.parametrize("packed", [4, 9, 100])
def test_packed_and_padded_batches_ask_the_same(packed: int) -> None:
    """The same positions, following tokens and targets; packed rows hold several documents, or one too long."""
    texts = numbered(0, 1, 2, 3)
    rows = np.array([2, 0, 3, 1])
    plain, tight = (build(texts, labels_of(texts), packed=size).batch(rows) for size in (0, packed))
    assert read(plain[0]) == read(tight[0])
    assert "attention_mask" not in tight[0] and tight[0]["input_ids"].numel() <= plain[0]["input_ids"].numel()
    for name in ("labels_B", "distil_B", "example_weight_B"):
        assert torch.equal(getattr(plain[1], name), getattr(tight[1], name)), name
    assert plain[1].targets is not None and tight[1].targets is not None
    assert torch.equal(plain[1].targets.ids_NK, tight[1].targets.ids_NK)
    assert torch.equal(plain[1].hidden[2], tight[1].hidden[2])
    places = tight[0][PLACES]
    assert tight[0]["position_ids"].flatten()[places].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 0]


def test_documents_without_labels_are_used_for_their_text_alone(caplog: pytest.LogCaptureFixture) -> None:
    """They are not distilled, their targets are finite, and the log says how many."""
    with caplog.at_level(logging.WARNING):
        found = build(numbered(0, 1, 2), labels_of(numbered(0, 2)))
    assert found.distil.tolist() == [True, False, True] and found.labelled.all()
    assert "1 of 3 train rows have no teacher labels" in caplog.text
    batch = found.batch(np.array([1, 0]))[1]
    assert batch.distil_B.tolist() == [False, True, True, True]
    assert batch.targets is not None and batch.targets.logp_NK.isfinite().all()
    assert batch.targets.ids_NK.tolist() == [[0, 1], [0, 1], [1, 2], [2, 3]]
    assert batch.hidden[2].tolist() == [[0, 0], [0, 0], [0, 1], [0, 2]]
    alone = found.batch(np.array([1]))[1]
    assert alone.targets is not None and alone.targets.logp_NK.exp().sum() == 1 and not alone.distil_B.any()


def test_excluded_documents_are_not_distilled() -> None:
    """Rows the teacher was fitted on keep their text and lose their soft labels."""
    excluded = pa.array([row_id(2), row_id(77)], pa.binary(16))
    found = build(numbered(0, 2), labels_of(numbered(0, 2)), excluded=excluded)
    assert found.distil.tolist() == [True, False]
    assert found.batch(np.array([1]))[1].distil_B.tolist() == [False] * 6


def test_documents_that_only_fill_a_batch_get_no_weight() -> None:
    """Each of their positions has weight 0."""
    batch = build(numbered(0, 1), labels_of(numbered(0, 1))).batch(np.array([0, 1]), np.array([False, True]))[1]
    assert batch.example_weight_B.tolist() == [0, 0, 0, 1]


def test_without_a_teacher_there_are_texts_alone() -> None:
    """No targets, no states, nothing to distil."""
    found = build(numbered(0, 1), None)
    inputs, batch = found.batch(np.array([0, 1]))
    assert batch.targets is None and not batch.distil_B.any() and batch.hidden == {} and not found.drawn
    assert len(inputs[PLACES]) == 4


def test_draws_reach_the_losses() -> None:
    """Counts and normalisers follow their position; documents without labels get counts of 0."""
    found = build(numbered(0, 1), labels_of(numbered(1), drawn=True))
    targets = found.batch(np.array([1, 0]))[1].targets
    assert found.drawn and targets is not None and targets.count_NK is not None
    assert targets.count_NK.tolist() == [[0, 4], [0, 0], [0, 0], [0, 0]]
    assert targets.log_normaliser_N is not None and targets.log_normaliser_N.tolist() == [10, 0, 0, 0]
    assert (targets.draws, targets.exponent) == (9, 0.5)


def test_positions_with_fewer_classes_are_padded() -> None:
    """Drawn classes differ in number: what is short is filled with no probability."""
    ids, signal = labels_of(numbered(1, 3), drawn=True)
    found = signal.distributions
    assert found is not None and found.draws is not None
    cut = replace(
        found,
        entry_offsets=np.array([0, 1, 3, 5], np.int64),
        ids=found.ids[1:],
        logp=found.logp[1:],
        draws=replace(found.draws, count=found.draws.count[1:]),
    )
    targets = build(numbered(1, 3), (ids, signal.with_parts({DISTRIBUTIONS: cut}))).batch(np.array([1, 0]))[1].targets
    assert targets is not None and targets.count_NK is not None
    assert targets.ids_NK.tolist() == [[30, 31], [31, 32], [11, 0]]
    assert targets.logp_NK[2].exp().tolist() == pytest.approx([0.3, 0.0]) and targets.count_NK[2].tolist() == [4, 0]


def test_only_what_a_role_says_is_answered() -> None:
    """In a conversation the places are those of the assistant's tokens, padded and packed."""
    chat = '[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]'
    for packed in (0, 80):
        found = build({0: chat, 1: chat.replace("yo", "yes")}, None, processor=processor(settings=CHAT), packed=packed)
        inputs, batch = found.batch(np.array([1, 0]))
        assert read(inputs)[1] == "yes<|im_end|>yo<|im_end|>"
        assert tiny_causal_tokenizer().decode(batch.labels_B) == "yes<|im_end|>yo<|im_end|>"


@pytest.mark.parametrize("vocabulary", [261, 300])
def test_labels_of_a_vocabulary_that_is_padded_otherwise_become_those_of_the_student(vocabulary: int) -> None:
    """Targets are over the student's classes; of tokens that both have nothing changes."""
    expected = build(numbered(0), labels_of(numbered(0))).batch(np.array([0]))[1].targets
    found = build(numbered(0), labels_of(numbered(0)), vocabulary=vocabulary).batch(np.array([0]))[1].targets
    assert found is not None and expected is not None and found.classes == vocabulary
    assert torch.equal(found.ids_NK, expected.ids_NK) and torch.equal(found.logp_NK, expected.logp_NK)
    assert torch.equal(found.log_tail_NT, expected.log_tail_NT)


@pytest.mark.parametrize(("classes", "tokens"), [(300, None), (200, "sha256:same")])
def test_another_vocabulary_is_refused(classes: int, tokens: str | None) -> None:
    """Of another tokenizer as far as is known, or with fewer classes than tokens: both widths are named."""
    teacher = TeacherIdentity(fingerprint="t", model="teacher", tokens=tokens)
    student: Any = SimpleNamespace(processor=processor(), vocabulary=V, url="s")
    check_vocabulary(teacher, V, student)
    check_vocabulary(teacher.with_changes(tokens="sha256:same"), 300, student)
    with pytest.raises(
        ConfigError,
        match=rf"distributions over {classes} tokens, the student's head has 264 for the 261 of its tokenizer: a "
        r"student must have the teacher's tokenizer .* start it from the teacher's config",
    ):
        check_vocabulary(teacher, classes, student)


def test_labels_at_other_tokens_are_refused() -> None:
    """Cut elsewhere, or other messages learnt: the first such row is named."""
    texts = numbered(0, 2)
    with pytest.raises(ConfigError, match=f"row {row_id(2).hex()} was labelled at other tokens .* label again"):
        build(texts, labels_of(texts), processor=processor(max_length=5))
    ids, signal = labels_of(texts)
    moved = signal.distributions.position.copy()
    moved[-1] += 1
    shifted = signal.with_parts({DISTRIBUTIONS: replace(signal.distributions, position=moved)})
    with pytest.raises(ConfigError, match=f"row {row_id(2).hex()} was labelled at other tokens"):
        build(texts, (ids, shifted))


def test_pooled_states_are_refused() -> None:
    """A language model's states are matched token by token."""
    with pytest.raises(ConfigError, match=r"labels\.hidden\.pool is mean: .* label with pool: token"):
        build(numbered(0), labels_of(numbered(0)), pool="mean")


def test_a_train_split_nobody_labelled_is_an_error() -> None:
    """Not so a validation split, which is judged by its text."""
    with pytest.raises(TrainingError, match="none of the 1 usable rows of the train split has teacher labels"):
        build(numbered(0), labels_of(numbered(1)))
    assert not build(numbered(0), labels_of(numbered(1)), name="validation").distil.any()


def test_documents_that_cannot_be_used_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Blank texts and single tokens; the others keep their labels. None left is an error with the split's name."""
    texts = {0: "abcd", 1: "  ", 2: "x", 3: "nop"}
    with caplog.at_level(logging.WARNING):
        found = build(texts, labels_of(numbered(0, 3)))
    assert "2 rows of the train split cannot be used" in caplog.text and found.rows == 2
    assert found.batch(np.array([1]))[1].hidden[2].tolist() == [[3, 0], [3, 1]]
    with pytest.raises(TrainingError, match="the train split has no usable row"):
        build({1: " "}, labels_of(numbered(0)))


def test_too_little_retained_mass_is_refused() -> None:
    """At T = 2 the stored classes hold 0.3 of the mass: not enough to teach from, unless the tail was sampled."""
    texts = numbered(0, 1)
    found = build({**texts, 2: "unlabelled"}, labels_of(texts))
    assert found.retained_mass(1.0, np.array([0, 1])) == pytest.approx(0.9, abs=1e-6)
    check_retained_mass(found, np.arange(3), 1.0)
    with pytest.raises(ConfigError, match=r"temperature 2: the stored classes have only 0\.30"):
        check_retained_mass(found, np.arange(3), 2.0)
    check_retained_mass(build(texts, labels_of(texts, drawn=True)), np.arange(2), 2.0)


def test_a_student_with_other_tokens_is_refused(tmp_path: Path) -> None:
    """By the fingerprint in the store's manifest; a store that has none says nothing."""
    model = load_model(str(write_tiny_causal_model(tmp_path, seed=0)), task="causal_lm")
    tokens: str = model.processor.tokens_fingerprint  # type: ignore[attr-defined]
    own = TeacherIdentity(fingerprint="t", model="teacher", tokens=tokens)
    check_tokens(own, model)
    check_tokens(own.with_changes(tokens=None), model)
    check_tokens(own, SimpleNamespace(processor=object(), url="s"))  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError,
        match=r"has another tokenizer or chat template .* than the labels of teacher "
        r".* teach it nothing\. Start the student from the teacher's config",
    ):
        check_tokens(own.with_changes(tokens="sha256:" + "0" * 64), model)


def test_a_batch_is_a_value_of_its_documents_alone() -> None:
    """A document's part of a batch is what it is alone, whatever stands beside it."""
    texts = numbered(0, 1, 2, 3)
    found = build(texts, labels_of(texts))
    together: LossBatch = found.batch(np.array([3, 1]))[1]
    alone = [found.batch(np.array([row]))[1] for row in (3, 1)]
    assert together.labels_B.tolist() == [int(label) for one in alone for label in one.labels_B]
    assert torch.equal(together.hidden[2], torch.cat([one.hidden[2] for one in alone]))


def test_a_documents_entropy_is_the_mean_over_its_tokens() -> None:
    """NaN of a document that the teacher has not labelled."""
    texts = {1: "abcd", 2: "ef", 3: "ghi"}
    ids, signal = labels_of({1: "abcd", 3: "ghi"})
    entropy = np.array([1.0, 2.0, 6.0, 0.5, 1.5], np.float32)
    labels = ids, signal.with_parts({DISTRIBUTIONS: replace(signal.distributions, entropy=entropy)})
    found = build(texts, labels)
    assert np.array_equal(found.entropies(), [3.0, np.nan, 1.0], equal_nan=True)
