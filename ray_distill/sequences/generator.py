"""Describe and fingerprint the generator, which is the key of stored texts."""

from typing import ClassVar

from ray_distill.artifacts import Artifact
from ray_distill.errors import ChangedModel, CorruptStore, DistillError
from ray_distill.fingerprint import fingerprint

VERSION = 1


class Generator(Artifact):
    """A teacher and its decoding settings.

    Together with a prompt's id and a candidate's number it decides a text, up to the last digits of sums, which depend
    on the prompts in a batch. Batch size and threads are therefore part of it, as for a label store.
    """

    refusal: ClassVar[type[DistillError]] = CorruptStore

    version: int = VERSION
    teacher: str
    """Fingerprint of the teacher: weights, dtype, tokenizer, template."""
    model: str
    """Path or name of the teacher's checkpoint; not part of the fingerprint."""
    format: str
    """Form of a row: a key of `ray_distill.sequences.texts.FORMS`."""
    method: str
    candidates: int
    temperature: float
    top_p: float
    top_k: int | None
    beams: int
    length_penalty: float
    new_tokens: int
    seed: int
    """0 if the method draws nothing."""
    prompts_a_batch: int
    threads: int
    own: str = ""
    """Fingerprint of the tokens that the checkpoint's generation settings require at an end or a beginning, or forbid.
    They are not part of the teacher's fingerprint, because they do not change its labels. Empty: none."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all fields except ``model``."""
        return fingerprint({name: item for name, item in self.to_dict().items() if name != "model"})

    def require_teacher(self, found: str) -> None:
        """Compare the teacher with the fingerprint of the model that was loaded to write.

        Raises:
            ChangedModel: they differ.
        """
        if found != self.teacher:
            raise ChangedModel(
                f"labels.teacher: {self.model} is not the teacher that began to write: it has other weights, settings "
                f"or tokens here ({found}, its texts are stored under {self.teacher}). Restore its files on every "
                "machine, and run the same command again",
                found=found,
            )
