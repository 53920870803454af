"""What language models write, side by side: greedy, after the same tokens, and only where it was asked for."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig
from ray_distill.config.judge import EvaluationConfig
from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import EvaluationError, ModelError
from ray_distill.evaluation.predict.texts import Written, from_json, to_json
from ray_distill.models.io.load import load_model
from ray_distill.tasks.answers.tokens.evaluation.side_by_side import (
    FROM_TEST,
    choose_prompts,
    greedy,
    write_side_by_side,
)
from ray_distill.testing.models import tiny_text_processor, write_tiny_causal_model

HEADER = "<|im_start|>assistant\n"


def turn(role, content):
    return {"role": role, "content": content}


ASK, SAY, THANK = turn("user", "hi"), turn("assistant", "yo"), turn("user", "thanks")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {arm: str(write_tiny_causal_model(root / arm, seed)) for seed, arm in enumerate(("teacher", "student"))}


def loaded(folders, **language):
    return {
        arm: load_model(
            TeacherConfig(model=folder, max_length=100, language=LanguageConfig(**language)), task="causal_lm"
        )
        for arm, folder in folders.items()
    }


@pytest.fixture(scope="module")
def texts(folders):
    return loaded(folders)


@pytest.fixture(scope="module")
def chats(folders):
    return loaded(folders, format="chat")


def choose(models, asked, documents=(), new_tokens=8):
    return choose_prompts(models, asked, pa.chunked_array([pa.array(documents, pa.string())]), new_tokens=new_tokens)


def text_of(models, prompt):
    return models["teacher"].processor.tokenizer.decode(prompt.ids_L.tolist())


def test_nothing_is_written_unless_it_is_asked_for():
    """Raw text reaches the tracking server only where somebody chose it."""
    assert EvaluationConfig().prompts == ()
    assert EvaluationConfig.model_validate({"prompts": "test"}).prompts == "test"
    assert EvaluationConfig.model_validate({"prompts": ["Once"]}).prompts == ("Once",)
    with pytest.raises(ValueError, match="prompts"):
        EvaluationConfig.model_validate({"prompts": "validation"})


def test_each_model_goes_on_as_transformers_own_greedy_decoding(texts):
    """The same tokens as ``generate`` without sampling, prompt by prompt and model by model."""
    prompts = choose(texts, ["Once upon", "Ünï 🎈"])
    for item, prompt in zip(write_side_by_side(texts, prompts, new_tokens=12), prompts, strict=True):
        assert item.prompt == prompt.shown and item.reference is None and list(item.answers) == list(texts)
        for arm, model in texts.items():
            ids = torch.tensor([prompt.ids_L.tolist()])
            found = model.module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
            wanted = model.processor.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
            assert item.answers[arm] == wanted
    assert item.answers["teacher"] != item.answers["student"]


def test_an_answer_ends_at_its_end_or_the_limit(texts):
    """At any token that ends, which is left out; at so many tokens; and where the model can read no further."""
    model, ids = texts["teacher"], choose(texts, ["Once upon"])[0].ids_L.tolist()
    free = greedy(model, ids, stops=frozenset(), new_tokens=9)
    assert len(free) == 9
    assert greedy(model, ids, stops=frozenset(free[4:5]), new_tokens=9) == free[: free.index(free[4])]
    (item,) = write_side_by_side({"teacher": model}, choose(texts, ["x" * 98]), new_tokens=9)
    assert item.answers["teacher"] == model.processor.tokenizer.decode(
        greedy(model, choose(texts, ["x" * 98])[0].ids_L.tolist(), stops=frozenset(), new_tokens=2)
    )


def test_documents_are_continued_from_their_beginnings(texts):
    """At most 32 tokens and half of each, of the first five documents long enough; what followed stands beside."""
    documents = ["x", "abcdef", "y" * 100, "", *["word" * 9] * 9]
    prompts = choose(texts, "test", documents, new_tokens=2)
    assert len(prompts) == FROM_TEST
    assert [(item.shown, item.reference) for item in prompts[:2]] == [("abc", "de"), ("y" * 32, "yy")]


def test_a_conversation_is_continued_by_the_assistant(chats):
    """JSON, or what a user says: rendered by the template, with the assistant's header; its own last words apart."""
    said = json.dumps([ASK])
    for asked in (said, "hi", json.dumps({"messages": [ASK, SAY]})):
        (prompt,) = choose(chats, [asked])
        assert text_of(chats, prompt) == f"<|im_start|>user\nhi<|im_end|>\n{HEADER}"
        assert prompt.shown == "user: hi"
    assert prompt.reference == "yo"
    (prompt,) = choose(chats, [json.dumps([ASK, SAY, THANK])])
    assert text_of(chats, prompt).endswith(f"thanks<|im_end|>\n{HEADER}") and prompt.reference is None
    assert prompt.shown == "user: hi\nassistant: yo\nuser: thanks"


def test_a_conversation_of_the_test_split_stops_before_the_last_answer(chats):
    """Whatever follows that answer; conversations without one, or that begin with it, are passed over."""
    rows = [[ASK, SAY, THANK], [ASK], [SAY, ASK], [turn("user", "z" * 99), SAY], [ASK, SAY, THANK, SAY]]
    prompts = choose(chats, "test", ["no JSON", *map(json.dumps, rows)])
    assert [(item.shown, item.reference) for item in prompts] == [
        ("user: hi", "yo"),
        ("user: hi\nassistant: yo\nuser: thanks", "yo"),
    ]


def test_in_a_conversation_any_special_token_ends_an_answer(chats):
    """A student whose own settings name no end of a turn does not run on into the user's."""
    (prompt,) = choose(chats, ["hi"])
    ends = chats["teacher"].processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    module = Says([ord("o"), ends, ord("p")], prompt)
    (item,) = write_side_by_side({"teacher": replace(chats["teacher"], module=module)}, [prompt], new_tokens=5)
    assert len(item.answers["teacher"]) == 1


class Says(torch.nn.Module):
    """A model that goes on with the given tokens, whatever stands before."""

    def __init__(self, tokens, prompt):
        super().__init__()
        self.one = torch.nn.Parameter(torch.eye(264))
        self.tokens, self.start = tokens, len(prompt.ids_L)

    def forward(self, input_ids, attention_mask, output_hidden_states=False):
        token = self.tokens[input_ids.shape[1] - self.start]
        return type("Output", (), {"logits": self.one[token].expand(1, input_ids.shape[1], -1)})()


@pytest.mark.parametrize(
    ("asked", "why"), [("", "has 0 tokens"), ("x" * 100, "has 100 tokens, and the model reads 100: nothing can follow")]
)
def test_a_text_that_cannot_be_continued_is_refused(texts, asked, why):
    """Empty, or as long as the model reads."""
    with pytest.raises(ModelError, match=why):
        choose(texts, [asked])


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ([turn("robot", "hi")], "unknown role 'robot'"),
        ([SAY], "nothing comes before the assistant's message"),
        ({"text": "hi"}, "no conversation"),
    ],
)
def test_a_conversation_that_cannot_be_continued_is_refused(chats, asked, why):
    """JSON that is no conversation is a mistake, not something a user says."""
    with pytest.raises(ModelError, match=why):
        choose(chats, [json.dumps(asked)])


def test_a_model_without_a_tokenizer_cannot_write(texts):
    """Its tokens could not be shown."""
    bare = replace(texts["teacher"], processor=tiny_text_processor())
    with pytest.raises(EvaluationError, match=r"evaluation\.prompts: .* has no tokenizer"):
        choose({"teacher": bare}, ["hi"])
    with pytest.raises(EvaluationError, match="different tokenizers"):
        choose({"teacher": texts["teacher"], "student": bare}, ["hi"])


def test_the_artifact_holds_everything_and_reads_back():
    """Prompts, answers by arm, references, and how they were decoded."""
    written = (
        Written(prompt="a", answers={"teacher": "b", "student": "c"}, reference="d"),
        Written(prompt="e", answers={"teacher": "", "student": "f"}),
    )
    value = json.loads(json.dumps(to_json(written, new_tokens=8)))
    assert (value["decoding"], value["new_tokens"]) == ("greedy", 8)
    assert from_json(value) == written
