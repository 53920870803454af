"""Validate the losses of a run against its labels, student and sampler."""

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
from ray_distill.students.objective.loss_settings import LossKinds, layer_maps, refuse_labels
from ray_distill.students.objective.weighted_losses import Term, build_terms, group_of
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget

#: Number of places at which the length of stored states is measured, and rows at each.
SCALE_PLACES, SCALE_ROWS = 16, 256

#: Least mean mass of the stored classes at the training temperature: below it, most of the target's mass would be in
#: the tail, whose shape is unknown (MATHS.md §3).
MIN_RETAINED_MASS = 0.5


def check_losses(
    losses: Mapping[str, LossConfig], labels: Labels, training: TrainingConfig, kinds: LossKinds
) -> list[str]:
    """Return the errors in the configured losses, each with its dotted name and a remedy.

    Commands run this check before they spend any resources.
    """
    wrong, terms = [], list[Term]()
    for name, config in losses.items():
        try:
            # Layers are paired later, with the student; any pair is enough to check the other settings.
            own = build_terms(
                {name: config}, kinds=kinds, steps=1, temperatures=labels.temperatures, layers={name: {0: 0}}
            )
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
    """Return the properties of a store that losses may use."""
    return Labels(
        temperatures=manifest.distributions.temperatures,
        drawn=manifest.distributions.draws > 0,
        hidden=bool(manifest.hidden),
        pool=manifest.pool,
        basis=any(spec.projected for spec in manifest.hidden.values()),
    )


def pairs_of(
    losses: Mapping[str, LossConfig], stored: Sequence[int], model: Model, kinds: LossKinds
) -> dict[str, dict[int, int]]:
    """Return student layer to stored teacher layer, by the name of each loss of hidden states.

    Raises:
        ConfigError: as `layer_pairs`.
    """
    return {name: layer_pairs(spec, stored, model, name) for name, spec in layer_maps(losses, kinds).items()}


def check_retained_mass(data: Examples, rows: Index, temperature: float) -> None:
    """Refuse a temperature at which the stored classes have too little of the teacher's mass.

    If classes were drawn, the tail is estimated without bias, however little of the mass is stored, and every
    temperature is accepted.

    Raises:
        ConfigError: the measured mass is below the minimum.
    """
    taught = rows[data.distil[rows]]
    if data.drawn or len(taught) == 0:
        return
    mass = data.retained_mass(temperature, taught)
    if mass < MIN_RETAINED_MASS:
        raise too_little_mass(temperature, mass)


def too_little_mass(temperature: float, mass: float) -> ConfigError:
    """Return the error about a temperature at which too little mass is stored."""
    return ConfigError(
        f"student.losses.soft.temperature {temperature:g}: the stored classes have only {mass:.2f} of the "
        f"teacher's mass at this temperature, at least {MIN_RETAINED_MASS} is needed; train at a lower "
        "temperature, or label again into a new store (labels.store) with a larger k"
    )


def required_layers(terms: Sequence[Term]) -> tuple[dict[int, int], tuple[int, ...]]:
    """Return the layers to project, with their teacher layers, and the plain layers.

    Student layers are *plain* if losses need their states without a projection.

    Raises:
        ConfigError: two losses project one student layer to different teacher layers.
    """
    projected, plain = dict[int, int](), set[int]()
    for term in terms:
        pairs = term.loss.layer_pairs()
        if not term.loss.projected:
            plain |= set(pairs)
            continue
        for student, teacher in pairs.items():
            if projected.setdefault(student, teacher) != teacher:
                raise ConfigError(
                    f"student.losses.{term.name}.layers: student layer {student} is projected to teacher layer "
                    f"{projected[student]} by another loss, and to {teacher} by this one: use the same pair in both"
                )
    return projected, tuple(sorted(plain))


def scales_of(data: Examples) -> dict[int, float]:
    """Return the mean squared length of the stored vectors of each layer.

    The mean is over rows at a few evenly spread places, few enough to be read at once if data are streamed. The rows
    are the same if data are in memory.
    """
    if not data.widths:
        return {}
    most = SCALE_PLACES * SCALE_ROWS
    starts = np.linspace(0, max(0, data.rows - SCALE_ROWS), SCALE_PLACES).astype(np.int64)
    near = (starts[:, None] + np.arange(SCALE_ROWS)).ravel()
    rows = np.arange(data.rows, dtype=np.int64) if data.rows <= most else np.unique(near)
    return state_scales(data.states(rows[data.distil[rows]]))


def state_scales(hidden: Mapping[int, Vectors]) -> dict[int, float]:
    """Return the mean squared length of each layer's vectors, in float64.

    It is 0 for a layer without vectors.
    """
    sums = {
        layer: float(np.einsum("ij,ij->", states.values, states.values, dtype=np.float64))
        for layer, states in hidden.items()
    }
    return {layer: total / max(len(hidden[layer].values), 1) for layer, total in sums.items()}
