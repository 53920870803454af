"""What training counts on of a language model: its head taken apart, and documents packed into one row."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from ray_distill.errors import ModelError
from ray_distill.models.core.head_extraction import body_and_head, keeps_documents_apart

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WITH_HEAD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "tied": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "eager": ("LlamaForCausalLM", "LlamaConfig", {"attn_implementation": "eager"}),
    "window": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 4}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 1.0}),
}


def _model(model: str, config: str, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    values = (
        SMALL | overrides
        if model != "GPT2LMHeadModel"
        else {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, **overrides}
    )
    built: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**values))
    return built


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_HEAD)
def test_a_head_of_the_last_states_gives_the_logits(name: str, dtype: torch.dtype) -> None:
    """Body and head are the module's own parts, and what they give with padding is what the module gives."""
    kind, config, overrides = WITH_HEAD[name]
    module = _model(kind, config, **overrides).to(dtype).eval()
    body, head = body_and_head(module)
    assert any(part is body for part in module.modules()) and any(part is head for part in module.modules())
    ids, mask = torch.randint(96, (3, 11)), torch.arange(11).expand(3, 11) < torch.tensor([[11], [4], [7]])
    with torch.no_grad():
        expected = module(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        states = body(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    assert torch.equal(head(states), expected)


@pytest.mark.parametrize(
    ("kind", "config", "overrides", "why"),
    [
        ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": 8}, r"soft-caps its logits \(final_logit_softcapping 30\)"),
        ("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 8.0}, r"scales its logits \(logits_scaling 8\)"),
        ("CohereForCausalLM", "CohereConfig", {}, r"scales its logits \(logit_scale 0.0625\)"),
        ("BertForSequenceClassification", "BertConfig", {}, "no linear head .* found none"),
    ],
)
def test_logits_that_are_not_the_heads_output_are_refused(
    kind: str, config: str, overrides: dict[str, Any], why: str
) -> None:
    """Soft-capping, scaling and no head at all are errors that say which it is, in bfloat16 too."""
    module = _model(kind, config, **overrides)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ModelError, match=f"{kind}.*{why}"):
            body_and_head(module.to(dtype))


def test_a_change_that_no_setting_tells_of_is_found_by_trying() -> None:
    """A module whose forward does something after the head is refused although its config says nothing."""
    module = _model("LlamaForCausalLM", "LlamaConfig")
    module.register_forward_hook(lambda _module, _inputs, output: SimpleNamespace(logits=output.logits + 1e-3))
    with pytest.raises(ModelError, match="does something between its last hidden states and its logits"):
        body_and_head(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_HEAD)
def test_packed_documents_get_the_logits_they_get_alone(name: str, dtype: torch.dtype) -> None:
    """Three documents in one row, told apart by positions alone, against each on its own."""
    kind, config, overrides = WITH_HEAD[name]
    module = _model(kind, config, **overrides).to(dtype).eval()
    assert keeps_documents_apart(module)
    documents = [torch.randint(96, (length,)) for length in (5, 1, 8)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    with torch.no_grad():
        packed = module(input_ids=torch.cat(documents)[None], position_ids=positions[None], use_cache=False).logits[0]
        alone = torch.cat([module(input_ids=document[None], use_cache=False).logits[0] for document in documents])
    torch.testing.assert_close(packed, alone, rtol=0, atol=float(alone.abs().max()) * torch.finfo(dtype).eps * 8)


@pytest.mark.parametrize(
    ("kind", "config", "overrides"),
    [
        ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4}),
        ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 64}),
    ],
)
def test_a_model_that_reads_over_the_boundary_is_found_out(kind: str, config: str, overrides: dict[str, Any]) -> None:
    """Bloom knows no position ids; OPT counts positions from the mask: neither may be packed."""
    values = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers")}
    built = getattr(transformers, kind)(
        getattr(transformers, config)(**values, **overrides, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    assert not keeps_documents_apart(built)


class OneRowAlone(transformers.LlamaForCausalLM):
    """As transformers' flash attention: only of a batch of one row does it look at where positions begin again."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **options: Any) -> Any:
        positions = position_ids if len(input_ids) == 1 else None
        return super().forward(input_ids=input_ids, position_ids=positions, **options)


def test_documents_of_several_rows_must_be_apart_too() -> None:
    """A model that keeps the documents of one row apart, and those of two rows not, may not be packed."""
    torch.manual_seed(0)
    module = OneRowAlone(transformers.LlamaConfig(**SMALL)).eval()
    documents = [torch.randint(96, (length,)) for length in (5, 8)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    with torch.no_grad():
        packed = module(input_ids=torch.cat(documents)[None], position_ids=positions, use_cache=False).logits[0, 5:]
        torch.testing.assert_close(packed, module(input_ids=documents[1][None], use_cache=False).logits[0])
    assert not keeps_documents_apart(module)


def test_trying_leaves_the_modes_and_the_random_state_alone() -> None:
    """Parts in train mode stay in train mode, and the caller's generator is where it was."""
    module = _model("LlamaForCausalLM", "LlamaConfig").train()
    module.lm_head.eval()  # type: ignore[union-attr,operator]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    body_and_head(module)
    keeps_documents_apart(module)
    assert torch.equal(torch.rand(1), expected)
    assert module.training and not module.lm_head.training  # type: ignore[union-attr]
