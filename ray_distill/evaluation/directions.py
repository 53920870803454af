"""Whether more of a metric is better: the one table that says so, for the gate and for the report."""

HIGHER_IS_BETTER = {
    "accuracy": True,
    "macro_f1": True,
    "agreement": True,
    "nll": False,
    "ece": False,
    "kl_from_teacher": False,
    "parameters": False,
    "bytes_on_disk": False,
    "latency_ms_p50": False,
    "latency_ms_p95": False,
    "examples_per_second": True,
}
