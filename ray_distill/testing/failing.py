"""A teacher that fails as configured: on some rows, large batches, all, or when loaded."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Self

import torch
from torch import Tensor

from ray_distill.models.core.model import ModelParts
from ray_distill.testing.models import TinyText, tiny_text_processor

Fault = Literal["memory", "raise", "hang", "die"]


class FailingText(TinyText):
    """`TinyText` with faults; its weights, and so its fingerprint, are the same without them."""

    def __init__(
        self,
        classes: int,
        *,
        faults: Mapping[int, Fault],
        fits: int | None,
        always: Fault | None,
        loading: Fault | None,
        once: str | None,
        starts: str | None,
    ):
        super().__init__(classes, fuse=None)
        self.faults, self.fits, self.always, self.loading = dict(faults), fits, always, loading
        self.once, self.starts = once, starts

    def eval(self) -> Self:
        """Enter the mode of a model that is loaded to label, not for its processor alone."""
        if self.starts is not None:
            with Path(self.starts).open("a") as file:
                file.write(f"{os.getpid()}\n")
        if self.loading is not None:
            self._fail(self.loading, 1)
        return super().eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Return as `TinyText.forward`, unless an error is to be injected."""
        rows = len(input_ids)
        if self.fits is not None and rows > self.fits:
            self._fail("memory", rows)
        if self.always is not None:
            self._fail(self.always, rows)
        for token, fault in self.faults.items():
            if bool((input_ids == token).any()):
                self._fail(fault, rows)
        return super().forward(input_ids, attention_mask, output_hidden_states)

    def _fail(self, fault: Fault, rows: int) -> None:
        if self.once is not None:
            if Path(self.once).exists():
                return
            Path(self.once).touch()
        if fault == "memory":
            raise torch.OutOfMemoryError(f"out of memory (pretended) for {rows} rows")
        if fault == "raise":
            raise ValueError("this teacher is configured to fail")
        if fault == "hang":
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)


def failing_text_model(
    classes: list[str],
    *,
    faults: Mapping[str, Fault] | None = None,
    fits: int | None = None,
    always: Fault | None = None,
    loading: Fault | None = None,
    once: str | None = None,
    starts: str | None = None,
    plan: str | None = None,
) -> ModelParts:
    """Build a text classifier that fails as configured, for ``module:function``.

    Its fingerprint depends on its arguments, but not on the content of the file ``plan``.

    Args:
        classes: class names.
        faults: what happens with a batch that has this character in a text; punctuation.
        fits: rows of the largest batch that fits into its memory.
        always: what happens with every batch.
        loading: what happens when it is loaded.
        once: a file; the first fault makes it, and there is none while it exists.
        starts: a file that gets a line each time that it is loaded.
        plan: a JSON file with the other arguments, which replaces them; it may be missing.
    """
    if plan is not None and Path(plan).exists():
        return failing_text_model(classes, **json.loads(Path(plan).read_text(encoding="utf-8")))
    processor = tiny_text_processor()
    tokens = {int(processor.tokenizer.convert_tokens_to_ids(sign)): fault for sign, fault in (faults or {}).items()}
    module = FailingText(
        len(classes), faults=tokens, fits=fits, always=always, loading=loading, once=once, starts=starts
    )
    return ModelParts(module=module, processor=processor, classes=tuple(classes))
