"""The losses of a run beside its labels, student and sampler: what each of these must give, and what is refused."""

from collections.abc import Mapping, Sequence

import numpy as np

from ray_distill.config import LossConfig, TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Vectors
from ray_distill.losses.base import Labels
from ray_distill.models.core.model import Model
from ray_distill.students.data.examples import Examples
from ray_distill.students.modules.student_module import layer_pairs
from ray_distill.students.objective.loss_settings import layer_maps, refuse_labels
from ray_distill.students.objective.weighted_losses import Term, build_terms, group_of
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget

#: Where the length of stored states is measured: rows in each of so many places.
SCALE_PLACES, SCALE_ROWS = 16, 256

#: Least mean mass of the stored classes at the training temperature: below it the tail's unknown shape is
#: most of what the student would be taught (MATHS.md §3).
MIN_RETAINED_MASS = 0.5


def check_losses(losses: Mapping[str, LossConfig], labels: Labels, training: TrainingConfig) -> list[str]:
    """What is wrong with the losses, before anything is spent: each by its dotted name, with what to do."""
    wrong, terms = [], list[Term]()
    for name, config in losses.items():
        try:
            # Which layers pair up is known with the student; any pair will do to check the rest.
            own = build_terms({name: config}, steps=1, temperatures=labels.temperatures, layers={name: {0: 0}})
            terms += own
            for _, loss in own[0].stages:
                refuse_labels(loss, name, labels)
        except ConfigError as error:
            wrong.append(str(error))
    try:
        Budget.of(training, group_of(terms))
    except ConfigError as error:
        wrong.append(str(error))
    return wrong


def labels_of(manifest: StoreManifest) -> Labels:
    """What the losses may know of a store."""
    return Labels(
        temperatures=manifest.temperatures,
        drawn=manifest.draws > 0,
        hidden=bool(manifest.hidden_layers),
        pool=manifest.pool,
        basis=manifest.hidden_rank > 0 or manifest.hidden_variance > 0,
    )


def pairs_of(losses: Mapping[str, LossConfig], stored: Sequence[int], model: Model) -> dict[str, dict[int, int]]:
    """By the name of each loss of hidden states, student layer to stored teacher layer.

    Raises:
        ConfigError: as `layer_pairs`.
    """
    return {name: layer_pairs(spec, stored, model, name) for name, spec in layer_maps(losses).items()}


def check_retained_mass(data: Examples, rows: Index, temperature: float) -> None:
    """Refuse a temperature at which the stored classes hold too little of the teacher's mass.

    Where classes were drawn the tail is known without bias, however little of the mass is stored: nothing is refused.

    Raises:
        ConfigError: the measured mass is below the floor.
    """
    taught = rows[data.distil[rows]]
    if data.drawn or len(taught) == 0:
        return
    mass = data.retained_mass(temperature, taught)
    if mass < MIN_RETAINED_MASS:
        raise ConfigError(
            f"student.losses.soft.temperature {temperature:g}: the stored classes hold only {mass:.2f} of the "
            f"teacher's mass at this temperature, at least {MIN_RETAINED_MASS} is needed; train at a lower "
            "temperature, or label again with a larger k"
        )


def layers_wanted(terms: Sequence[Term]) -> tuple[dict[int, int], tuple[int, ...]]:
    """Student layers that a bundle must project, with the teacher layer of each; and those it must give as they are.

    Raises:
        ConfigError: two losses want one layer projected to two teacher layers.
    """
    projected, plain = dict[int, int](), set[int]()
    for term in terms:
        pairs = term.loss.layer_pairs()
        if not term.loss.projected:
            plain |= set(pairs)
            continue
        for ours, theirs in pairs.items():
            if projected.setdefault(ours, theirs) != theirs:
                raise ConfigError(
                    f"student.losses.{term.name}.layers: student layer {ours} is projected to teacher layer "
                    f"{projected[ours]} by another loss, and to {theirs} by this one: pair it alike"
                )
    return projected, tuple(sorted(plain))


def scales_of(data: Examples) -> dict[int, float]:
    """Mean squared length of the stored vectors of each layer, over rows in a few places evenly spread: as many as are
    read at once where data are streamed, and the same ones where they are not.
    """
    if not data.widths:
        return {}
    most = SCALE_PLACES * SCALE_ROWS
    starts = np.linspace(0, max(0, data.rows - SCALE_ROWS), SCALE_PLACES).astype(np.int64)
    near = (starts[:, None] + np.arange(SCALE_ROWS)).ravel()
    rows = np.arange(data.rows, dtype=np.int64) if data.rows <= most else np.unique(near)
    return state_scales(data.states(rows[data.distil[rows]]))


def state_scales(hidden: Mapping[int, Vectors]) -> dict[int, float]:
    """Mean squared length of the stored vectors of each layer, in float64; 0 of a layer without any."""
    sums = {
        layer: float(np.einsum("ij,ij->", states.values, states.values, dtype=np.float64))
        for layer, states in hidden.items()
    }
    return {layer: total / max(len(hidden[layer].values), 1) for layer, total in sums.items()}
