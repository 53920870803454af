"""What decides every text that a teacher writes: the key under which texts are found again."""

from ray_distill.artifacts import Artifact
from ray_distill.fingerprint import fingerprint

GENERATOR_NAME = "generator.json"
VERSION = 1


class Generator(Artifact):
    """A teacher and the way in which it writes.

    With the id of a prompt and the number of a candidate this decides a text, up to the last digits of sums that depend
    on which prompts share a batch; so the batch and the threads belong to it, as they do to a label store.
    """

    version: int = VERSION
    teacher: str
    """Fingerprint of the teacher: weights, dtype, tokenizer, template."""
    model: str
    """Where the teacher came from; not part of the fingerprint."""
    format: str
    """``text``, ``chat`` or ``pair``: see `with_answer`."""
    method: str
    candidates: int
    temperature: float
    top_p: float
    top_k: int | None
    beams: int
    length_penalty: float
    new_tokens: int
    seed: int
    """0 where nothing is drawn."""
    prompts_a_batch: int
    threads: int
    own: str = ""
    """Fingerprint of tokens that the checkpoint's generation settings end, begin or forbid texts with: they are no part
    of the teacher's, whose answers they do not change. Empty: none."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything except the place of the model."""
        return fingerprint({name: item for name, item in self.to_dict().items() if name != "model"})
