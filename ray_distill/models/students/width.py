"""Cut a student from its teacher's width: channels, heads and neurons, by their activations.

As Minitron does it (Muralidharan et al., arXiv 2407.14679, section 2): channels of the residual stream are ranked by
their mean size after the norms, over all norms of the model; heads and neurons, layer by layer, by the mean size of
what they give to the projection behind them. The greatest are kept, in their order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ray_distill.config import StudentModel
from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.forward import forward
from ray_distill.tasks.encoded import Batch

Index = npt.NDArray[np.int64]

#: Calibration rows that are measured.
ROWS = 256

#: Axes of a weight: channels, and a layer's attention heads, heads of keys and values, and neurons; None is not cut.
CHANNELS, HEADS, GROUPS, NEURONS = "channels", "heads", "groups", "neurons"
Axes = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of a family of architectures, as regular expressions on the ends of names."""

    weights: Mapping[str, Axes]
    """Axes of each weight."""
    norms: str
    """Modules whose outputs rank the channels."""
    heads: str
    """Modules whose inputs are a layer's heads; the group is the layer's number."""
    neurons: str
    """Modules whose inputs are a layer's neurons, likewise."""
    free: bool
    """Whether the size of a head is a setting, so that heads and channels may be cut by different shares."""


_BERT = Layout(
    weights={
        r"embeddings\.\w+_embeddings\.weight": (None, CHANNELS),
        r"LayerNorm\.(weight|bias)": (CHANNELS,),
        r"attention\.self\.(query|key|value)\.weight": (HEADS, CHANNELS),
        r"attention\.self\.(query|key|value)\.bias": (HEADS,),
        r"attention\.output\.dense\.weight": (CHANNELS, HEADS),
        r"intermediate\.dense\.weight": (NEURONS, CHANNELS),
        r"intermediate\.dense\.bias": (NEURONS,),
        r"layer\.\d+\.output\.dense\.weight": (CHANNELS, NEURONS),
        r"output\.dense\.bias": (CHANNELS,),
        r"(pooler|classifier)\.dense\.weight": (CHANNELS, CHANNELS),
        r"(pooler|classifier)\.dense\.bias": (CHANNELS,),
        r"classifier(\.out_proj)?\.weight": (None, CHANNELS),
        r"classifier(\.out_proj)?\.bias": (None,),
    },
    norms=r"LayerNorm",
    heads=r"layer\.(\d+)\.attention\.output\.dense",
    neurons=r"layer\.(\d+)\.output\.dense",
    free=False,
)
_LLAMA = Layout(
    weights={
        r"embed_tokens\.weight": (None, CHANNELS),
        r"(input_layernorm|post_attention_layernorm|model\.norm)\.weight": (CHANNELS,),
        r"q_proj\.weight": (HEADS, CHANNELS),
        r"q_proj\.bias": (HEADS,),
        r"(k|v)_proj\.weight": (GROUPS, CHANNELS),
        r"(k|v)_proj\.bias": (GROUPS,),
        r"o_proj\.weight": (CHANNELS, HEADS),
        r"(gate|up)_proj\.weight": (NEURONS, CHANNELS),
        r"down_proj\.weight": (CHANNELS, NEURONS),
        r"(o|down)_proj\.bias": (CHANNELS,),
        r"(lm_head|score)\.weight": (None, CHANNELS),
    },
    norms=r"(input_layernorm|post_attention_layernorm|model\.norm)",
    heads=r"layers\.(\d+)\.self_attn\.o_proj",
    neurons=r"layers\.(\d+)\.mlp\.down_proj",
    free=True,
)
#: By ``model_type``.
LAYOUTS: Mapping[str, Layout] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
}
#: Fields of a config by which a width may be given.
FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True, kw_only=True)
class WidthScores:
    """Mean sizes of activations of a teacher of L layers."""

    channels: tuple[float, ...]
    """``[D]``"""
    heads: tuple[tuple[float, ...], ...]
    """``[L][H]``"""
    neurons: tuple[tuple[float, ...], ...]
    """``[L][I]``"""


@dataclass(frozen=True, kw_only=True)
class KeptWidth:
    """The channels, heads and neurons of the teacher that a student has."""

    layout: Layout
    overrides: Mapping[str, Any]
    """Fields of the transformers config that follow."""
    channels: Index
    heads: tuple[Index, ...]
    """By layer of the teacher, rows of the heads' weights; likewise the heads of keys and values, and the neurons."""
    groups: tuple[Index, ...]
    neurons: tuple[Index, ...]
    describe: Mapping[str, Any]
    """Facts for the model card."""

    def cut(self, name: str, weight: Tensor) -> Tensor:
        """Return the kept part of a weight of the teacher.

        Raises:
            ModelError: the family has no such weight.
        """
        for index, axis in zip(self._indices(name), range(weight.ndim), strict=True):
            if index is not None:
                weight = weight.index_select(axis, torch.from_numpy(index).to(weight.device))
        return weight

    def _indices(self, name: str) -> list[Index | None]:
        axes = next((axes for end, axes in self.layout.weights.items() if re.search(rf"(^|\.){end}$", name)), None)
        if axes is None:
            raise ModelError(
                f"student.model.from is teacher_width, and the teacher has a weight {name}, which no rule cuts"
            )
        layer = int(found[1]) if (found := re.search(r"\.layers?\.(\d+)\.", name)) else 0
        by_axis: dict[str | None, Index | None] = {
            None: None,
            CHANNELS: self.channels,
            HEADS: self.heads[layer],
            GROUPS: self.groups[layer],
            NEURONS: self.neurons[layer],
        }
        return [by_axis[axis] for axis in axes]


def keep_width(config: StudentModel, teacher_config: Any, *, scores: WidthScores | None, url: str) -> KeptWidth:
    """Return the part of the teacher's width that a student has.

    With a share, heads are cut to the nearest number of whole groups that share keys and values, and channels and
    neurons by the share that this makes.

    Args:
        config: the share, or the sizes as ``overrides``.
        teacher_config: the teacher's transformers config.
        scores: sizes of activations; None where they are not measured yet: the first of each kind stand in.
        url: of the teacher, for messages.

    Raises:
        ConfigError: the family is not known, or the sizes do not suit it.
    """
    layout, sizes = _layout(teacher_config, url), _Sizes.of(teacher_config)
    chosen = _chosen_sizes(config, sizes, layout, url)
    depth = int(teacher_config.num_hidden_layers)
    scores = scores or WidthScores(
        channels=(0.0,) * sizes.channels,
        heads=((0.0,) * sizes.heads,) * depth,
        neurons=((0.0,) * sizes.neurons,) * depth,
    )
    groups = [_greatest(_by_group(layer, sizes.groups), chosen.groups) for layer in scores.heads]
    own = {"num_key_value_heads": chosen.groups, "head_dim": sizes.head}
    own = {key: value for key, value in own.items() if key in teacher_config.to_dict()}
    return KeptWidth(
        layout=layout,
        overrides={**dict(zip(FIELDS, (chosen.channels, chosen.heads, chosen.neurons), strict=True)), **own},
        channels=_greatest(scores.channels, chosen.channels),
        heads=tuple(_rows(index, sizes.heads // sizes.groups * sizes.head) for index in groups),
        groups=tuple(_rows(index, sizes.head) for index in groups),
        neurons=tuple(_greatest(layer, chosen.neurons) for layer in scores.neurons),
        describe={
            "channels": f"{chosen.channels} of {sizes.channels}",
            "heads": f"{chosen.heads} of {sizes.heads}",
            "neurons": f"{chosen.neurons} of {sizes.neurons}",
        },
    )


def measure_width(module: nn.Module, model_config: Any, batches: Sequence[Batch], url: str) -> WidthScores:
    """Return the mean sizes of the teacher's activations, over the real tokens of some batches.

    Raises:
        ConfigError: the family is not known.
        ModelError: the module has not the parts of its family.
    """
    layout, sizes, depth = _layout(model_config, url), _Sizes.of(model_config), int(model_config.num_hidden_layers)
    sums = {
        CHANNELS: np.zeros((1, sizes.channels)),
        HEADS: np.zeros((depth, sizes.heads)),
        NEURONS: np.zeros((depth, sizes.neurons)),
    }
    with torch.inference_mode():
        for batch in batches:
            with _watched(module, layout, sums, mask=batch["attention_mask"].bool(), head=sizes.head) as seen:
                forward(module, batch)
    if not batches or len(seen) < 2 * depth + 1:
        raise ModelError(
            f"{url} has not all parts of its family ({model_config.model_type}), so it cannot be cut in width"
        )
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    found = {name: tuple(tuple(float(f"{one:.6g}") for one in row) for row in sums[name] / tokens) for name in sums}
    return WidthScores(channels=found[CHANNELS][0], heads=found[HEADS], neurons=found[NEURONS])


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    channels: int
    heads: int
    groups: int
    """Heads of keys and values."""
    head: int
    """Numbers a head."""
    neurons: int

    @classmethod
    def of(cls, config: Any) -> "_Sizes":
        heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
        return cls(
            channels=config.hidden_size,
            heads=heads,
            groups=groups or heads,
            head=getattr(config, "head_dim", None) or config.hidden_size // heads,
            neurons=config.intermediate_size,
        )


def _layout(config: Any, url: str) -> Layout:
    kind = getattr(config, "model_type", type(config).__name__)
    if kind not in LAYOUTS:
        raise ConfigError(
            f"student.model.from is teacher_width, and the teacher {url} is a {kind}: {', '.join(LAYOUTS)} can be "
            "cut in width; set from to teacher_layers or config"
        )
    found = LAYOUTS[kind]
    return replace(found, free=found.free and "head_dim" in config.to_dict())


def _chosen_sizes(config: StudentModel, sizes: _Sizes, layout: Layout, url: str) -> _Sizes:
    if config.width is not None:
        groups = max(1, round(config.width * sizes.groups))
        heads = groups * sizes.heads // sizes.groups
        channels = heads * sizes.head if not layout.free else round(sizes.channels * groups / sizes.groups)
        neurons = max(1, round(sizes.neurons * groups / sizes.groups))
        return _Sizes(channels=channels, heads=heads, groups=groups, head=sizes.head, neurons=neurons)
    given = config.overrides
    channels, neurons = given.get("hidden_size", sizes.channels), given.get("intermediate_size", sizes.neurons)
    heads = given.get("num_attention_heads", sizes.heads if layout.free else channels // sizes.head)
    chosen = {"hidden_size": channels, "num_attention_heads": heads, "intermediate_size": neurons}
    known = dict(zip(FIELDS, (sizes.channels, sizes.heads, sizes.neurons), strict=True))
    wrong = [f"{name} {chosen[name]}" for name in FIELDS if not 1 <= chosen[name] <= known[name]]
    a_group = sizes.heads // sizes.groups
    if wrong or heads % a_group or (not layout.free and channels != heads * sizes.head):
        tied = "" if layout.free else f", and hidden_size {sizes.head} times as many"
        raise ConfigError(
            f"student.model.overrides: found {', '.join(wrong) or f'{heads} heads and hidden_size {channels}'}; of the "
            f"teacher {url} expected hidden_size up to {sizes.channels}, intermediate_size up to {sizes.neurons}, "
            f"num_attention_heads up to {sizes.heads} in steps of {a_group}{tied}"
        )
    return _Sizes(channels=channels, heads=heads, groups=heads // a_group, head=sizes.head, neurons=neurons)


def _greatest(scores: Sequence[float], count: int) -> Index:
    """Return the indices of the greatest scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:count]).astype(np.int64)


def _by_group(scores: Sequence[float], groups: int) -> list[float]:
    return [float(part.sum()) for part in np.split(np.asarray(scores), groups)]


def _rows(index: Index, each: int) -> Index:
    """Return the rows of blocks of ``each`` rows."""
    return (index[:, None] * each + np.arange(each)).reshape(-1)


@contextmanager
def _watched(
    module: nn.Module, layout: Layout, sums: Mapping[str, npt.NDArray[np.float64]], *, mask: Tensor, head: int
) -> Iterator[set[str]]:
    """Add the sizes of activations to ``sums`` while the module runs; yield the modules seen."""
    seen = set[str]()

    def norm(name: str) -> Any:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.add(name)
            sums[CHANNELS][0] += _total(output.abs(), mask)

        return watch

    def behind(name: str, kind: str, layer: int, each: int) -> Any:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.add(name)
            sizes = inputs[0].float().reshape(*inputs[0].shape[:-1], -1, each).norm(dim=-1)
            sums[kind][layer] += _total(sizes, mask)

        return watch

    hooks = []
    for name, part in module.named_modules():
        if re.search(rf"(^|\.){layout.norms}$", name):
            hooks.append(part.register_forward_hook(norm(name)))
        for kind, end, each in ((HEADS, layout.heads, head), (NEURONS, layout.neurons, 1)):
            if found := re.search(rf"(^|\.){end}$", name):
                hooks.append(part.register_forward_pre_hook(behind(name, kind, int(found[found.lastindex or 0]), each)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _total(values: Tensor, mask: Tensor) -> npt.NDArray[np.float64]:
    """Sum ``[B, L, N]`` over real tokens."""
    found: npt.NDArray[np.float64] = values[mask.to(values.device)].double().sum(0).cpu().numpy()
    return found
