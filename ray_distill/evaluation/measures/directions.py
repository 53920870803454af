"""Whether more of a metric is better, and which one decides: the tables that the gate and the report share."""

from collections.abc import Container

HIGHER_IS_BETTER = {
    "accuracy": True,
    "macro_f1": True,
    "agreement": True,
    "nll": False,
    "perplexity": False,
    "ece": False,
    "kl_from_teacher": False,
    "rouge1": True,
    "rouge2": True,
    "rouge_l": True,
    "chrf": True,
    "parameters": False,
    "bytes_on_disk": False,
    "latency_ms_p50": False,
    "latency_ms_p95": False,
    "examples_per_second": True,
    "tokens_per_second": True,
    "exact_match": True,
    "word_error_rate": False,
}


#: Tasks whose models are language models.
LANGUAGE_TASKS = ("causal_lm", "seq2seq")


def decisive(task: str) -> str:
    """The `headline` of a task's models."""
    return "nll" if task in LANGUAGE_TASKS else "accuracy"


def is_language(metrics: Container[str]) -> bool:
    """Are these metrics (names, or estimates by name) a language model's?"""
    return "perplexity" in metrics


def headline(metrics: Container[str]) -> str:
    """The metric by which models of this kind are told apart first: a language model's is ``nll``."""
    return "nll" if is_language(metrics) else "accuracy"


def higher_is_better(name: str) -> bool | None:
    """Whether more of a metric is better; None where it is not known, or where 0 is best (gaps).

    A metric at a bucket of positions, ``kl_from_teacher_at_0_15``, goes with the metric. Of the benchmarks,
    ``lm_eval_…``, more is better but of perplexities and bits.
    """
    if name.startswith("lm_eval_"):
        return not name.endswith(("perplexity", "bits_per_byte"))
    return HIGHER_IS_BETTER.get(name.split("_at_")[0])
