"""Configure the texts that the teacher generates, and which of them are kept."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_distill.config.labels import FailuresConfig
from ray_distill.config.section import NOT_DECIDING, Section, Temperature

#: Settings that belong to one method, and what they are where it is another one.
_OF_METHOD = {
    "temperature": ("sample", 1.0),
    "top_p": ("sample", 1.0),
    "top_k": ("sample", None),
    "beams": ("beam", 1),
    "length_penalty": ("beam", 1.0),
}


class SequenceFilters(Section):
    """Filters of sequences, in this order; each is counted under the first that applies."""

    min_tokens: int = Field(1, ge=1, description="least tokens written, the one that ends the answer included")
    max_tokens: int | None = Field(None, ge=1, description="most tokens written")
    ended: bool = Field(False, description="drop what was cut off at new_tokens instead of coming to an end")
    min_log_probability: float | None = Field(
        None,
        le=0,
        description="least log-probability a token, by the teacher, at temperature 1, mean over the sequence, nats",
    )
    scorer: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:function that gets "
        "a table (row_id, candidate, input, text, tokens, log_probability) and returns a "
        "number a row, NaN for what is to be dropped",
    )
    min_score: float | None = Field(None, description="least score")
    dedup: bool = Field(True, description="equal answers to one prompt count once; else as often as they were written")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        if self.min_score is not None and self.scorer is None:
            raise ValueError("min_score needs a scorer")
        return self


class WritingFailures(FailuresConfig):
    """When a teacher that writes has failed; see `FailuresConfig`."""

    batch_seconds: float = Field(
        3600, gt=0, description="seconds in which a batch must be written, also one of one prompt"
    )


class SequencesConfig(Section):
    """Sequence-level distillation: the teacher writes the texts that are labelled and learnt.

    ``unit_rows`` does not decide: a prompt that was written for is not written for again in a unit of another size.
    """

    method: Literal["greedy", "sample", "beam"] = Field(
        "greedy", description="the likeliest token each time; draws; the likeliest of `beams` partial sequences"
    )
    candidates: int = Field(1, ge=1, description="sequences written for a prompt")
    temperature: Temperature = Field(1.0, description="sample: the logits are divided by it; 0.01 to 1,000")
    top_p: float = Field(1.0, gt=0, le=1, description="sample: draw from the fewest likeliest tokens of this mass")
    top_k: int | None = Field(None, ge=1, description="sample: draw from so many likeliest tokens; default: from all")
    beams: int = Field(1, ge=1, description="beam: partial sequences kept; at least 2, and at least `candidates`")
    length_penalty: float = Field(1.0, description="beam: scores are log-probabilities over length to this power")
    new_tokens: int = Field(
        256,
        ge=1,
        description="most tokens written; a prompt that leaves less room is rejected, "
        "and of targets it is at most target_length",
    )
    keep: Literal["all", "best"] = Field(
        "all",
        description="best: of a prompt's sequences that of the highest score, or without a scorer of the "
        "highest mean log-probability a token",
    )
    filters: SequenceFilters = SequenceFilters()
    splits: tuple[Literal["train", "validation", "calibration", "test"], ...] = Field(
        ("train", "validation"),
        min_length=1,
        description="splits whose rows are prompts; the rows of the others stay "
        "as they are, so that a student is judged on real texts",
    )
    batch: int = Field(16, ge=1, description="sequences written at a time, beams and candidates counted")
    unit_rows: int = Field(
        64, ge=1, description="most prompts a work unit: what is redone after a crash", json_schema_extra=NOT_DECIDING
    )
    failures: WritingFailures = Field(WritingFailures(), json_schema_extra=NOT_DECIDING)
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="above this share of prompts that got no answer, stop",
        json_schema_extra=NOT_DECIDING,
    )

    @field_validator("splits")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a split is named twice")
        return value

    @model_validator(mode="after")
    def _fits_method(self) -> Self:
        for name, (method, unset) in _OF_METHOD.items():
            if self.method != method and getattr(self, name) != unset:
                raise ValueError(f"{name} goes with method: {method}, not {self.method}")
        if self.method == "greedy" and self.candidates > 1:
            raise ValueError(
                f"greedy writes one sequence a prompt, candidates is {self.candidates}: take sample or beam"
            )
        if self.method == "beam" and self.beams < max(2, self.candidates):
            raise ValueError(
                f"beam needs at least {max(2, self.candidates)} beams for {self.candidates} candidates, "
                f"beams is {self.beams}"
            )
        if self.filters.min_tokens > self.new_tokens:
            raise ValueError(f"filters.min_tokens {self.filters.min_tokens} is more than new_tokens {self.new_tokens}")
        return self

    @property
    def prompts_a_batch(self) -> int:
        """Prompts that are answered together."""
        return max(1, self.batch // max(self.candidates, self.beams))
