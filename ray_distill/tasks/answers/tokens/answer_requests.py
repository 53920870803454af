"""Answer requests with a language model, from a file that is copied beside the checkpoint.

`served_model` executes the file.

It does not import the package, except for a student that a ``module:function`` built; no code is pickled, and weights
are read from safetensors only.

Requests are texts. A model of plain text continues one. A model of conversations answers it: a user's message, or a
conversation as JSON, as OpenAI's API has them. An encoder-decoder takes it as the source, cut to what it reads, and
writes the target. The answers are ``generated``: always the likeliest token, until the model ends or ``max_new_tokens``
are there. Requests are answered one by one, so that no answer depends on its neighbours; for heavy traffic give the
checkpoint to an inference server.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

MAX_NEW_TOKENS = 128

#: (text, tokens to write at most) -> what follows.
Write = Callable[[str, int], str]
#: (requests, parameters) -> answers by column.
Answer = Callable[[list[Any], Mapping[str, Any]], dict[str, list[Any]]]


def load(folder: Path, *, task: str, column: str, conversation: Any) -> Answer:
    """Load model and tokenizer of a checkpoint: a causal one, or an encoder-decoder.

    Args:
        folder: the checkpoint.
        task: its name.
        column: ``text``.
        conversation: the module of the file that reads and renders conversations.
    """
    saved = folder / "ray_distill.json"
    facts = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    if facts.get("task") == "seq2seq":
        write = _load_pairs(folder, facts)
    else:
        chat = facts.get("language", {}).get("format") == "chat"
        write = _load_built(folder) if "factory" in facts else _load(folder, conversation if chat else None)

    def answer(values: list[Any], params: Mapping[str, Any]) -> dict[str, list[Any]]:
        most = int(params.get("max_new_tokens", MAX_NEW_TOKENS))
        if most < 1:
            raise ValueError(f"max_new_tokens must be at least 1, found {most}")
        return {"generated": [write(_text(value), most) for value in values]}

    return answer


def _load(folder: Path, conversation: Any) -> Write:
    """Load a causal model.

    ``conversation`` is the module that reads its requests; None for plain text.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    stops = _stops(model, tokenizer, chat=conversation is not None)
    # Without the checkpoint's own settings, which may sample, or punish what is repeated.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=stops or None, pad_token_id=stops[0] if stops else 0
    )
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**6)

    def write(text: str, most: int) -> str:
        ids = _conversation(tokenizer, text, conversation) if conversation else _beginning(tokenizer, text)
        if not 0 < len(ids) < limit:
            raise ValueError(f"a text has {len(ids)} tokens: from 1 to {limit - 1} leave room for what follows")
        tokens = torch.tensor([ids], device=device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=min(most, limit - len(ids))
            )
        return str(tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))

    return write


def _load_pairs(folder: Path, facts: dict[str, Any]) -> Write:
    """Load an encoder-decoder that decodes greedily.

    Only the tokens with which a target begins and ends follow its own settings.
    """
    if "factory" in facts:
        raise ValueError(
            f"the student in {folder} was built by {facts['factory']['name']}: a model that writes "
            "targets is served where it is a class of transformers' own"
        )
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    kept = {
        name: getattr(model.generation_config, name, None)
        for name in ("forced_bos_token_id", "bad_words_ids", "eos_token_id")
    }
    kept["eos_token_id"] = model.config.eos_token_id if kept["eos_token_id"] is None else kept["eos_token_id"]
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        **kept,
    )
    settings, limit = facts.get("language", {}), int(facts.get("max_length") or tokenizer.model_max_length)
    longest = int(settings.get("target_length") or limit)

    def write(text: str, most: int) -> str:
        inputs = tokenizer(settings.get("prefix", "") + text, truncation=True, max_length=limit, return_tensors="pt")
        tokens, mask = (inputs[name].to(device) for name in ("input_ids", "attention_mask"))
        with torch.inference_mode():
            found = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=min(most, longest))
        return str(tokenizer.decode(found[0], skip_special_tokens=True))

    return write


def _load_built(folder: Path) -> Write:
    """Load a student that a ``module:function`` built, by the package that saved it."""
    from ray_distill.models.io.load import load_model
    from ray_distill.models.text.lm_processor import LanguageProcessor
    from ray_distill.models.text.prompts import given_prompt
    from ray_distill.tasks.answers.tokens.evaluation.side_by_side import write_side_by_side

    model = load_model(str(folder), task="causal_lm")
    processor = model.processor
    if not isinstance(processor, LanguageProcessor):
        raise ValueError(f"the student in {folder} has no tokenizer that turns tokens into text")

    def write(text: str, most: int) -> str:
        (written,) = write_side_by_side({"student": model}, [given_prompt(text, processor)], new_tokens=most)
        return written.answers["student"]

    return write


def _stops(model: Any, tokenizer: Any, *, chat: bool) -> list[int]:
    """Return the tokens that end an answer.

    They are those that model or tokenizer name as the end; in a conversation, any special token.
    """
    named = [tokenizer.eos_token_id, *(tokenizer.all_special_ids if chat else [])]
    for settings in (model.config, model.generation_config):
        ends = getattr(settings, "eos_token_id", None)
        named += ends if isinstance(ends, list) else [ends]
    return sorted({int(token) for token in named if token is not None})


def _beginning(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text, without the end that some tokenizers append."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _conversation(tokenizer: Any, text: str, conversation: Any) -> list[int]:
    """Return the tokens of a conversation that waits for the assistant.

    Any text that is not JSON of a list or an object is a user's message.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    request = text if isinstance(found, list | dict) else json.dumps([{"role": "user", "content": text}])
    try:
        prompt = conversation.render(tokenizer, conversation.read_chat(request), prompt=True)
    except conversation.Unfit as error:
        raise ValueError(
            f"a conversation is a list of messages, or an object with the key 'messages', as JSON: found {text[:80]!r} "
            f"({error})"
        ) from error
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return ids


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"column 'text' must contain strings, found {value!r}")
    return value
