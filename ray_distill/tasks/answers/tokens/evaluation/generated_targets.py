"""Write encoder-decoders' targets of sources, and compare them with the references.

The likeliest token is always taken.

Sums of likelihood see a model only after the reference's own words; here it goes on from what it wrote itself. Texts
are compared and dropped: numbers alone leave this module's measures.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats, Resampling, percentiles, resample
from ray_distill.evaluation.predict.batches import batches_of
from ray_distill.models.core.forward import place_batch
from ray_distill.models.core.model import Model
from ray_distill.models.text.seq2seq_processor import PairProcessor, own_tokens
from ray_distill.snapshots.pairs import read_pair
from ray_distill.tasks.answers.tokens import TOKENS
from ray_distill.tasks.answers.tokens.evaluation.predictions import encode_for_all
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task


def write_targets(models: Mapping[str, Model], rows: pa.Table, *, task: Task, batch: int) -> dict[str, pa.Table]:
    """Write every model's targets of the sources that all can use.

    Args:
        models: by name, of one tokenizer; the first one's processor encodes for all, and limits how much is written.
        rows: ``row_id``, the input, ``count``.
        task: of the models.
        batch: sources a batch.

    Returns:
        By model ``row_id``, ``count``, ``reference`` and ``written``, in the order of ``rows``.

    Raises:
        EvaluationError: tokens differ, no source can be used, or a model cannot write.
    """
    encoded = encode_for_all(models, rows, task=task)
    used = rows.take(pc.index_in(encoded.row_ids, value_set=rows["row_id"].cast(pa.binary(16)).combine_chunks()))
    reference = [read_pair(text).target or "" for text in used[task.inputs.column].to_pylist()]
    known = {"row_id": used["row_id"], "count": used["count"], "reference": pa.array(reference, pa.string())}
    return {
        name: pa.table(known | {"written": pa.array(_write(model, task, encoded, batch), pa.string())})
        for name, model in models.items()
    }


def measure_targets(written: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Measure how near a model's targets are to the references, with intervals over documents.

    Args:
        written: of one model, by `write_targets`.
        how: seed and number of resamples.

    Returns:
        ``exact_match``, the share of targets that are the reference word for word; and ``word_error_rate``, words to
        be changed, left out or put in over words of the references (Levenshtein 1966): above 1 where much too much was
        written. Words are what stands between spaces.
    """
    pairs = [
        (one.split(), other.split())
        for one, other in zip(written["written"].to_pylist(), written["reference"].to_pylist(), strict=True)
    ]
    sums = {
        "match": _floats(float(answer == reference) for answer, reference in pairs),
        "errors": _floats(float(distance(answer, reference)) for answer, reference in pairs),
        "words": _floats(float(len(reference)) for _, reference in pairs),
        "one": np.ones(len(pairs)),
    }
    weight_N = written["count"].to_numpy().astype(np.float64)
    value = _rates(sums, weight_N[None, :])
    samples = resample([lambda weight_BN: _rates(sums, weight_BN)], weight_N, how, widest=len(sums))[0]
    return {
        name: percentiles(float(value[name][0]), samples[name], len(pairs), low=0.0, high=TOKENS.metrics[name].high)
        for name in value
    }


def distance(answer: Sequence[str], reference: Sequence[str]) -> int:
    """Return the fewest words to change, omit or insert to make one text of the other.

    This is the distance of Levenshtein (1966).
    """
    before = list(range(len(reference) + 1))
    for row, word in enumerate(answer, start=1):
        now = [row]
        for column, other in enumerate(reference, start=1):
            now.append(min(now[-1] + 1, before[column] + 1, before[column - 1] + (word != other)))
        before = now
    return before[-1]


def _rates(sums: Mapping[str, Floats], weight_BN: Floats) -> dict[str, Floats]:
    total = {name: weight_BN @ values_N for name, values_N in sums.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"exact_match": total["match"] / total["one"], "word_error_rate": total["errors"] / total["words"]}


def _write(model: Model, task: Task, encoded: Encoded, batch: int) -> list[str]:
    """Return decoded targets in the order of the rows."""
    module, processor = model.module, model.processor
    if not isinstance(module, transformers.GenerationMixin) or not isinstance(processor, PairProcessor):
        raise EvaluationError(
            f"{model.url} ({type(module).__name__}) cannot write: it is not an encoder-decoder of "
            "transformers; set evaluation.written: 0 to judge it by its likelihoods alone"
        )
    found: dict[int, str] = {}
    for index in batches_of(np.diff(encoded.features["input_ids"].offsets), batch=batch):
        inputs = {
            name: value for name, value in task.inputs.collate(encoded, index).items() if not name.startswith("decoder")
        }
        with torch.inference_mode():
            tokens_BL = module.generate(**place_batch(module, inputs), generation_config=_greedy(module, processor))
        texts = processor.tokenizer.batch_decode(tokens_BL, skip_special_tokens=True)
        found |= dict(zip(index.tolist(), texts, strict=True))
    return [found[row] for row in range(encoded.rows)]


def _greedy(module: Any, processor: PairProcessor) -> Any:
    """Configure greedy decoding, whatever the checkpoint's own settings are.

    Only the tokens that begin and end a target follow the model's settings.
    """
    return transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=processor.target_length,
        decoder_start_token_id=processor.start,
        pad_token_id=processor.tokenizer.pad_token_id,
        **own_tokens(module),
    )


def _floats(values: Iterator[float]) -> Floats:
    return np.fromiter(values, np.float64)
