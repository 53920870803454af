"""From texts and conversations to tokens, and which of them are learnt."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from ray_distill.config.labels import LanguageConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.text.lm_processor import LanguageProcessor, language_processor
from ray_distill.testing.models import tiny_causal_tokenizer, tiny_tokenizer

END = "<|im_end|>"
CHATML = (
    "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{%- if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}{{ '<call>' + call.function.name + ' ' }}"
    "{{- (call.function.arguments | tojson) + '</call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{{ 'A: ' }}{% generation %}"
    "{{ message.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{ 'U: ' + message.content + ' ' }}{% endif %}"
    "{% endfor %}"
)
#: As templates of reasoning models: what was thought is shown of the last answer only.
FORGETFUL = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{- message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '. ' }}" + MARKED

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "yo"}


def _processor(max_length: int = 512, *, template: str | None = CHATML, **settings: Any) -> LanguageProcessor:
    tokenizer = tiny_causal_tokenizer()
    tokenizer.chat_template = template
    return language_processor(tokenizer, max_length, LanguageConfig(**{"format": "chat", **settings}))


def _learn(processor: LanguageProcessor, row: Any) -> tuple[str, list[str], str | None]:
    """The whole text, the runs of it that are learnt, and why it cannot be used."""
    text = row if isinstance(row, str) else json.dumps(row)
    features, reasons = processor.language([text])
    ids, answered = features["input_ids"].values, features["answered"].values
    assert len(ids) == len(answered) and answered.dtype == np.int8 and ids.dtype == np.int32
    cuts = np.flatnonzero(np.diff(answered)) + 1
    runs = [run for run, mask in zip(np.split(ids, cuts), np.split(answered, cuts), strict=True) if mask[:1].any()]
    return processor.tokenizer.decode(ids), [processor.tokenizer.decode(run) for run in runs], reasons.get(0)


def _why(row: Any, **settings: Any) -> str:
    whole, learnt, why = _learn(_processor(**settings), row)
    assert whole == "" and learnt == [] and why is not None
    return why


def test_plain_text_is_learnt_but_for_its_first_token() -> None:
    """Nothing predicts the first token; an empty text and a text of one token have nothing to learn."""
    processor = _processor(format="text", template=None)
    features, reasons = processor.language(["abc", "", "d", "é"])
    assert np.diff(features["input_ids"].offsets).tolist() == [3, 0, 1, 2] and reasons == {}
    assert features["answered"].values.tolist() == [0, 1, 1, 0, 0, 1]


def test_texts_are_cut_or_rejected_at_the_limit() -> None:
    """``cut`` keeps the first tokens; ``reject`` names both numbers, and a text at the limit is not too long."""
    cut = _processor(4, format="text")
    assert _learn(cut, "abcdefg")[0] == "abcd"
    rejecting = _processor(4, format="text", long="reject")
    assert _learn(rejecting, "abcdefg")[2] == "7 tokens, more than the 4 of max_length"
    assert _learn(rejecting, "abcd")[2] is None


def test_the_answers_of_an_assistant_are_learnt_with_their_ends() -> None:
    """What the assistant says and the token that ends its turn, not its header, nor the line feed after it."""
    whole, learnt, why = _learn(_processor(), [ASK, SAY, ASK, {**SAY, "content": "Ünï 🎈\n"}])
    assert learnt == [f"yo{END}", f"Ünï 🎈\n{END}"] and why is None
    assert whole.startswith(f"<|im_start|>system\nBe kind.{END}\n<|im_start|>user\nhi{END}\n<|im_start|>assistant\nyo")


def test_tools_and_tool_calls_are_kept() -> None:
    """The template is given the tools, and arguments as objects whether they came as such or as JSON in a string."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    spoken = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = {"role": "tool", "tool_call_id": "1", "content": "2"}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    whole, learnt, why = _learn(_processor(), {"messages": [ASK, spoken, answer, SAY], "tools": tools})
    assert why is None and learnt == ['<call>add {"a": 1}</call>' + END, f"yo{END}"]
    assert f"<|im_start|>tools\n{json.dumps(tools)}{END}\n" in whole and f"<|im_start|>tool\n2{END}" in whole
    parsed = {**call, "function": {"name": "add", "arguments": {"a": 1}}}
    assert _learn(_processor(), [ASK, {**spoken, "tool_calls": [parsed]}, answer, SAY])[1] == learnt


def test_other_roles_are_learnt_with_their_headers() -> None:
    """Roles are the config's: no prompt asks for a user's words, so their header is learnt too."""
    learnt = _learn(_processor(roles=("user",)), [{"role": "system", "content": "s"}, ASK, SAY])[1]
    assert learnt == [f"<|im_start|>user\nhi{END}"]
    everybody = _learn(_processor(roles=("assistant", "user")), [{"role": "system", "content": "s"}, ASK, SAY])[1]
    assert everybody == [f"<|im_start|>user\nhi{END}", f"yo{END}"]


def test_an_assistant_may_speak_first() -> None:
    """Its header is not learnt either, though no template renders the nothing before it."""
    assert _learn(_processor(), [SAY, ASK])[1] == [f"yo{END}"]


def test_contents_in_parts_are_joined() -> None:
    """As OpenAI's API has them; parts that are no text are a reason."""
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "o"}]
    assert _learn(_processor(), [ASK, {**SAY, "content": parts}]) == _learn(_processor(), [ASK, SAY])
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert _why([{**ASK, "content": picture}, SAY]) == "the content of message 1 has 'image_url', expected text"


def test_a_template_that_marks_answers_is_believed() -> None:
    """``{% generation %}`` says what the assistant wrote: one rendering is enough."""
    whole, learnt, _ = _learn(_processor(template=MARKED), [ASK, SAY, ASK, SAY])
    assert whole == f"U: hi A: yo{END}U: hi A: yo{END}" and learnt == [f"yo{END}"] * 2


def test_a_template_that_rewrites_earlier_turns_is_found_out() -> None:
    """Then nobody can tell who wrote what: the reason says so and what helps. One answer a row is no problem."""
    why = _why([ASK, SAY, ASK, SAY], template=FORGETFUL)
    assert "writes the first 2 messages otherwise once others follow" in why and "{% generation %}" in why
    assert _learn(_processor(template=FORGETFUL), [ASK, SAY])[1] == [f"<think></think>yo{END}"]


def _thinking(prompted: str = "<think>\\n", written: str = "") -> str:
    """As R1's distils: a prompt opens a thought, which a stored answer does not have, and thoughts are stripped."""
    return (
        "{%- for message in messages %}{{ '[' + message.role + ']' }}"
        "{%- if message.role == 'assistant' %}{{ '" + written + "' + message.content.split('</think>')[-1] }}"
        "{%- else %}{{ message.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '[assistant]" + prompted + "' }}{% endif %}"
    )


@pytest.mark.parametrize("answer", ["yo", "<that", "<think", "thinking", "", " yo ", "\n"])
def test_a_header_that_opens_a_thought_ends_where_the_answer_begins(answer: str) -> None:
    """The longest beginning that the prompt and any answer share is the header, whatever this answer begins with."""
    processor, say = _processor(template=_thinking()), {**SAY, "content": answer}
    whole, learnt, why = _learn(processor, [ASK, say])
    assert whole == f"[user]hi{END}[assistant]{answer}{END}" and learnt == [f"{answer}{END}"] and why is None
    assert _learn(processor, [ASK, say, ASK, say])[1] == [f"{answer}{END}"] * 2
    assert _learn(processor, [say, ASK, say])[1] == [f"{answer}{END}"] * 2
    thought = {**SAY, "content": f"<think>a</think>{answer}"}
    assert _learn(processor, [ASK, thought])[1] == [f"{answer}{END}"]


def test_an_empty_thought_that_is_written_is_learnt_as_far_as_it_is_not_prompted() -> None:
    """The prompt opens it, the rendering also closes it."""
    processor = _processor(template=_thinking(written="<think>\\n</think>"))
    assert _learn(processor, [ASK, SAY])[1] == [f"</think>yo{END}"]


def test_a_prompt_unlike_any_answer_is_a_reason_with_both() -> None:
    """Where a prompt and answers share no header, it shows the prompt's."""
    template = _thinking().replace("{{ '[assistant]<think>", "{{ '<bot><think>")
    why = _why([ASK, SAY], template=template)
    assert "prompts for an answer with '<bot><think>\\n' and writes none so" in why and "{% generation %}" in why


def test_a_template_that_rewrites_earlier_turns_shows_how() -> None:
    """On a made-up conversation: a row's own words are in no message."""
    why = _why([ASK, {**SAY, "content": "secret"}, ASK, SAY], template=FORGETFUL)
    assert r"assistant\n<think></think><think>b" in why and "', before others '" in why and "secret" not in why


def test_a_template_without_prompts_has_its_headers_learnt() -> None:
    """The model has to write them itself: no prompt ends in one."""
    template = _thinking().split("{%- if add_generation_prompt")[0]
    assert _learn(_processor(template=template), [ASK, SAY])[1] == [f"[assistant]yo{END}"]


def test_trimmed_answers_are_learnt_as_they_are_rendered() -> None:
    """Blanks around a stored answer are not in the text."""
    template = CHATML.replace("(message.content or '')", "(message.content or '') | trim")
    assert _learn(_processor(template=template), [ASK, {**SAY, "content": " yo \n"}])[1] == [f"yo{END}"]


MERGING = (
    "{%- for message in messages %}{%- if loop.first or loop.previtem.role != message.role %}"
    "{{ '[' + message.role + ']' }}{% endif %}{{ message.content }}"
    "{%- if loop.last or loop.nextitem.role != message.role %}{{ '<|im_end|>' }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}{%- if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def test_a_template_may_join_messages_of_one_role() -> None:
    """Of a user it is no matter; an assistant's are to be joined in the source, which the reason says."""
    processor = _processor(template=MERGING)
    assert _learn(processor, [ASK, ASK, SAY])[:2] == (f"[user]hi hi{END}[assistant]yo{END}", [f"yo{END}"])
    assert "join consecutive messages of assistant in the source" in (_learn(processor, [ASK, SAY, SAY])[2] or "")


STRICT = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)


def test_what_a_template_refuses_is_a_reason_in_its_words() -> None:
    """System roles and two turns of a user cost their row; the others are learnt."""
    processor = _processor(template=STRICT)
    assert _learn(processor, [ASK, SAY, ASK, SAY])[1] == [f"yo{END}"] * 2
    assert "System role not supported" in (_learn(processor, [{**ASK, "role": "system"}, ASK, SAY])[2] or "")
    assert "Roles must alternate" in (_learn(processor, [ASK, ASK, SAY])[2] or "")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_messages_of_weight_zero_are_not_learnt(template: str) -> None:
    """As in OpenAI's fine-tuning: they are read as context."""
    row = [ASK, {**SAY, "content": "bad", "weight": 0}, ASK, {**SAY, "weight": 1}]
    assert _learn(_processor(template=template), row)[1] == [f"yo{END}"]


def test_a_row_s_own_settings_reach_the_template() -> None:
    """Documents and what ``chat_template_kwargs`` names are its variables."""
    template = "{{ documents[0].text if documents }}{{ mood or '' }}" + CHATML
    row = {"messages": [ASK, SAY], "documents": [{"text": "D"}], "chat_template_kwargs": {"mood": "M"}}
    whole, learnt, _ = _learn(_processor(template=template), row)
    assert whole.startswith("DM<|im_start|>") and learnt == [f"yo{END}"]
    assert _learn(_processor(template="{{ mood or '' }}" + MARKED), {**row, "documents": []})[0].startswith("MU: hi")


DATE = "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{% endif %}"


def test_a_template_cannot_read_the_clock() -> None:
    """A row labelled today has the same tokens tomorrow."""
    assert _learn(_processor(template=DATED), [ASK, SAY])[0] == f"Today is 26 Jul 2024. U: hi A: yo{END}"
    system = _processor(template=DATE + "{{ '[system]' + date_string + '<|im_end|>' }}" + CHATML)
    whole, learnt, _ = _learn(system, [ASK, SAY])
    assert whole.startswith(f"[system]26 Jul 2024{END}") and learnt == [f"yo{END}"]


def test_what_a_template_raises_is_a_reason() -> None:
    """Templates refuse conversations with errors of their own."""
    assert "cannot render it: TemplateError: no" in _why([ASK, SAY], template="{{ raise_exception('no') }}")
    assert "cannot render it: TypeError" in _why([ASK, SAY], template="{{ messages[0].content + 1 }}")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("hello", "not JSON: Expecting value"),
        ("[" * 100_000, "not JSON: "),
        ('"hello"', "no conversation: expected a list of messages"),
        ({"conversation": []}, "no conversation"),
        ([], "no messages"),
        (["hi"], "message 1 is str, expected an object"),
        ([ASK, {"role": "assistent", "content": "yo"}], "message 2 has the unknown role 'assistent': expected one of"),
        ([ASK, {"role": ["assistant"], "content": "yo"}], "message 2 has the unknown role ['assistant']"),
        ([ASK, {"content": "yo"}], "message 2 has the unknown role None"),
        ([{"role": "user", "content": None}, SAY], "message 1 (user) has neither content nor tool_calls"),
        ([ASK, {"role": "assistant", "content": None, "tool_calls": []}], "message 2 (assistant) has neither"),
        ([{"role": "user", "content": 5}, SAY], "the content of message 1 is int, expected text"),
        ([ASK, {**SAY, "tool_calls": "add"}], "the tool_calls of message 2 must be a list of objects"),
        ({"messages": [ASK, SAY], "tools": {}}, "tools must be a list of objects"),
        ('[{"role": "user", "content": "\\ud800"}]', "not UTF-8: half a character (\\ud800)"),
        ([ASK], "nothing to learn: no message of assistant in it"),
    ],
)
def test_a_row_that_is_no_conversation_has_a_reason(row: Any, why: str) -> None:
    """It says what was found where; the row has no tokens."""
    assert why in _why(row)


def test_a_cut_that_leaves_no_answer_is_a_reason() -> None:
    """A conversation cut in the middle of an answer is learnt up to there, one cut before it is not."""
    row = [{"role": "system", "content": "s"}, ASK, SAY]
    length = len(_learn(_processor(), row)[0])
    tokens = len(_processor().language([json.dumps(row)])[0]["input_ids"].values)
    assert length > tokens > 30
    assert _learn(_processor(tokens - 2), row)[1] == ["yo"]
    why = _why(row, max_length=tokens - 4)
    assert why == f"nothing to learn: no message of assistant in the first {tokens - 4} of its {tokens} tokens"
    assert _why(row, max_length=5, long="reject") == f"{tokens} tokens, more than the 5 of max_length"


def test_a_long_conversation_costs_what_is_kept_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only messages before the cut are looked at; a conversation of too many is refused, not rendered for hours."""
    monkeypatch.setattr("ray_distill.models.text.chat.MOST_MESSAGES", 100)
    row = [ASK, SAY] * 5000
    assert _learn(_processor(64), row)[2] is None
    assert "more than 100 messages" in _why(row, max_length=10_000_000)
    assert _learn(_processor(10_000_000, template=MARKED), row)[1] == [f"yo{END}"] * 5000


def test_rows_come_back_in_order_with_reasons_at_their_places() -> None:
    """What is wrong with one row changes nothing of the others."""
    rows = [json.dumps([ASK, SAY]), "x", json.dumps([ASK]), json.dumps([ASK, {**SAY, "content": "other"}])]
    features, reasons = _processor().language(rows)
    assert sorted(reasons) == [1, 2]
    assert [int(n) for n in np.diff(features["input_ids"].offsets) > 0] == [1, 0, 0, 1]
    assert features["answered"].offsets.tolist() == features["input_ids"].offsets.tolist()
    alone = [_processor().language([row])[0]["input_ids"].values for row in rows]
    np.testing.assert_array_equal(features["input_ids"].values, np.concatenate(alone))
    assert _processor().language([])[0]["answered"].offsets.tolist() == [0]


def test_many_long_texts_are_tokenised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts change nothing: memory is bounded by a part."""
    processor = _processor(format="text")
    whole = processor.texts(["abc", "de", "", "fghij"])["input_ids"]
    monkeypatch.setattr("ray_distill.models.text.lm_processor._TOGETHER", 4)
    parts = processor.texts(["abc", "de", "", "fghij"])["input_ids"]
    assert parts.values.tolist() == whole.values.tolist() and parts.offsets.tolist() == [0, 3, 5, 5, 10]


def test_a_document_of_a_million_tokens_is_cut_or_rejected() -> None:
    """Neither way keeps more of it than the limit."""
    document = "word " * 200_000
    assert len(_processor(format="text").language([document])[0]["input_ids"].values) == 512
    assert _learn(_processor(format="text", long="reject"), document)[2] == (
        "1000000 tokens, more than the 512 of max_length"
    )
    assert _learn(_processor(64), [{**ASK, "content": "a"}, {**SAY, "content": document}])[1][0].startswith("word word")


def test_the_fingerprint_covers_what_decides_the_tokens() -> None:
    """Every setting, the template and the special tokens; roles and template only where they matter."""
    base = _processor()
    others = [
        _processor(511),
        _processor(long="reject"),
        _processor(roles=("user",)),
        _processor(template=MARKED),
        _processor(format="text"),
        language_processor(tiny_tokenizer(), 512, LanguageConfig()),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    assert base.fingerprint == _processor().fingerprint
    assert _processor(format="text", roles=("user",)).fingerprint == others[4].fingerprint
    assert _processor(roles=("user", "assistant")).fingerprint == _processor(roles=("assistant", "user")).fingerprint


def test_labels_and_students_share_tokens_not_limits() -> None:
    """``tokens_fingerprint`` knows nothing of limit, roles and padding."""
    base = _processor()
    assert base.tokens_fingerprint == _processor(7, roles=("user",), long="reject").tokens_fingerprint
    assert base.tokens_fingerprint != _processor(template=MARKED).tokens_fingerprint
    padded = tiny_causal_tokenizer()
    padded.chat_template, padded.pad_token = CHATML, padded.eos_token
    assert language_processor(padded, 512, base.settings).tokens_fingerprint == base.tokens_fingerprint
    ended = tiny_causal_tokenizer()
    ended.chat_template, ended.eos_token = CHATML, END
    assert language_processor(ended, 512, base.settings).tokens_fingerprint != base.tokens_fingerprint


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    """Its files carry the template and the limit."""
    base = _processor(77)
    base.save(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.model_max_length == 77
    assert language_processor(loaded, 77, base.settings).fingerprint == base.fingerprint


def test_a_tokenizer_without_padding_is_no_problem() -> None:
    """Padding is masked, so any token will do: the end of text, or the first of the vocabulary."""
    tokenizer = tiny_causal_tokenizer()
    tokenizer.pad_token = None
    processor = language_processor(tokenizer, 9, LanguageConfig())
    assert processor.texts(["a"])["input_ids"].pad == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert language_processor(tokenizer, 9, LanguageConfig()).texts(["a"])["input_ids"].pad == 0


def test_settings_that_cannot_be_are_refused() -> None:
    """No template for conversations, and roles that nobody has; each error says what to do."""
    with pytest.raises(ModelError, match=r"no chat template: put chat_template\.jinja .* or set .*format: text"):
        _processor(template=None)
    with pytest.raises(ConfigError, match="names assistent: expected some of system, developer"):
        _processor(roles=("assistent",))
    with pytest.raises(ModelError, match="takes texts, not images"):
        _processor().images([])
