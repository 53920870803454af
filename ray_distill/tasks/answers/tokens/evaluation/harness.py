"""Run tasks of lm-evaluation-harness from the user's own files on loaded models.

The package is optional; only this module and `harness_model` import it. None of its own tasks is used: a task is
what the folder defines. Its YAML files may name Python functions, which run: as with ``module:function``, give it
only files you would run.
"""

import contextlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_distill.artifacts import Estimate
from ray_distill.config.judge import HarnessConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Z95
from ray_distill.models.core.model import Model
from ray_distill.storage import files
from ray_distill.storage.scratch import Scratch
from ray_distill.tasks.answers.tokens import BENCHMARK_PREFIX


def run_harness(
    models: Mapping[str, Model], config: HarnessConfig, *, seed: int, batch: int
) -> dict[str, dict[str, Estimate]]:
    """Run every model on every task.

    Args:
        models: by arm.
        config: which tasks, and where their files lie.
        seed: of few-shot examples.
        batch: requests a forward pass at most.

    Returns:
        By arm ``lm_eval_<task>_<metric>`` (of other filters than ``none`` with ``_<filter>``), with the harness's own
        standard error as a normal 95 % interval where it has one.

    Raises:
        EvaluationError: the package is not installed, there is no such task, or a task cannot be read or run.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError(
            "evaluation.lm_eval needs the optional package lm-eval: pip install "
            "'ray-distill[lm-eval]', on every machine that evaluates"
        )
    with _folder_of(config.folder) as folder:
        return {arm: _read(_run(model, folder, config, seed=seed, batch=batch)) for arm, model in models.items()}


def _run(model: Model, folder: Path, config: HarnessConfig, *, seed: int, batch: int) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from ray_distill.tasks.answers.tokens.evaluation.harness_model import HarnessModel

    try:
        with contextlib.chdir(folder):  # the harness finds a task's data from where it stands
            manager = TaskManager(include_path=str(folder), include_defaults=False)
            missing = sorted(set(config.tasks) - set(manager.all_tasks))
            if missing:
                raise EvaluationError(
                    f"evaluation.lm_eval: {config.folder} has no task {', '.join(missing)}; it has "
                    f"{', '.join(sorted(manager.all_tasks)) or 'none'}"
                )
            found = simple_evaluate(
                HarnessModel(model, batch=batch),
                tasks=list(config.tasks),
                task_manager=manager,
                limit=config.limit,
                log_samples=False,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except EvaluationError:
        raise
    except Exception as error:  # a task's files are a program: they raise what they like
        raise EvaluationError(
            f"evaluation.lm_eval: the tasks of {config.folder} cannot be run on {model.url}: "
            f"{type(error).__name__}: {error}"
        ) from error
    assert found is not None
    return dict(found)


def _read(found: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the harness's results as estimates.

    The results are ``{task: {"acc,none": value, "acc_stderr,none": value}}``.
    """
    estimates = {}
    for task, values in found["results"].items():
        n = int(found.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            name = f"{BENCHMARK_PREFIX}{task}_{metric}" + ("" if chosen == "none" else f"_{chosen}")
            estimates[name] = _estimate(float(value), values.get(f"{metric}_stderr,{chosen}"), n)
    return estimates


def _estimate(value: float, error: Any, n: int) -> Estimate:
    if not isinstance(error, int | float) or math.isnan(error):
        return Estimate(value=value, n=n)
    return Estimate(value=value, low=value - Z95 * error, high=value + Z95 * error, n=n)


@contextlib.contextmanager
def _folder_of(url: str) -> Iterator[Path]:
    """Return the tasks' folder on this machine."""
    if "://" not in url:
        if not Path(url).is_dir():
            raise EvaluationError(
                f"evaluation.lm_eval.folder: there is no folder {url} on this machine: give a URL, "
                "or a path that every machine sees"
            )
        yield Path(url).absolute()
        return
    with Scratch("tasks") as scratch:
        yield files.download_folder(url, scratch.path)
