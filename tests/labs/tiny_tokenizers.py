"""Small tokenizers of the three kinds, trained on a few sentences, and classifiers that read them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

from ray_distill.config import TeacherConfig

SENTENCES = (
    "the parcel has not arrived and the support does not answer",
    "where is my invoice for the parcel, please send the invoice",
    "the engine of the motorcycle does not start in the morning",
    "a hockey team has won the game in the second overtime",
    "the graphics card does not answer after the second start",
    "encryption of the second message was broken by the attackers",
)


def word_piece() -> Any:
    """Return a tokenizer as BERT's: specials first, then single characters, then pieces of words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(WordPiece({}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.train_from_iterator(SENTENCES * 3, WordPieceTrainer(vocab_size=180, special_tokens=specials))
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, inner.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    )
    return _wrapped(inner, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")


def byte_pairs() -> Any:
    """Return a tokenizer as RoBERTa's: merges of bytes, the padding token at 1."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(SENTENCES * 3, trainer)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _wrapped(inner, pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")


def unigram() -> Any:
    """Return a tokenizer as XLM-R's: pieces with scores, a space as part of a piece."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner = Tokenizer(Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        SENTENCES * 3, UnigramTrainer(vocab_size=140, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return _wrapped(inner, pad="<pad>", unk="<unk>", cls="<s>", sep="</s>", mask="<mask>")


TOKENIZERS: Mapping[str, Callable[[], Any]] = {"WordPiece": word_piece, "BPE": byte_pairs, "Unigram": unigram}


CLASSES = ("ham", "spam", "other")
#: Config and model of a classifier with a tokenizer of this kind.
ARCHITECTURES: Mapping[str, tuple[Any, Any]] = {
    "WordPiece": (transformers.BertConfig, transformers.BertForSequenceClassification),
    "BPE": (transformers.RobertaConfig, transformers.RobertaForSequenceClassification),
    "Unigram": (transformers.XLMRobertaConfig, transformers.XLMRobertaForSequenceClassification),
}


def write_classifier(folder: Path, kind: str) -> TeacherConfig:
    """Write an untrained classifier of three layers with such a tokenizer; its embeddings have three more rows."""
    tokenizer = TOKENIZERS[kind]()
    config, model = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model(
        config(
            vocab_size=len(tokenizer) + 3,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=66,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.5,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TeacherConfig(model=str(folder))


def make_alike(folder: Path, *words: str) -> None:
    """Give words of a saved classifier embeddings that are alike."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    path = folder / "model.safetensors"
    state = load_file(path)
    (key,) = (name for name in state if name.endswith("embeddings.word_embeddings.weight"))
    ids = [tokenizer(f"a {word}", add_special_tokens=False)["input_ids"][-1] for word in words]
    noise = torch.randn(len(ids), state[key].shape[1], generator=torch.Generator().manual_seed(0))
    state[key][ids] = state[key][ids[0]] + 0.2 * noise
    save_file(state, path, metadata={"format": "pt"})


def _wrapped(inner: Tokenizer, **names: str) -> Any:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )
