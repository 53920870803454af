"""From a config to what is asked of a teacher."""

from ray_distill.config import HiddenConfig, SignalConfig
from ray_distill.errors import TeacherRefused
from ray_distill.teachers.base import Ask


def build_ask(signal: SignalConfig, hidden: HiddenConfig, *, states: int) -> Ask:
    """What a config asks of a teacher with ``states`` hidden states (`Model.widths`).

    Raises:
        TeacherRefused: a layer the teacher does not have, or one named twice.
    """
    layers = resolve_layers(hidden.layers, states) if hidden.layers else ()
    return Ask(
        estimator=signal.estimator, k=signal.k, temperatures=signal.temperatures, layers=layers, pool=hidden.pool)


def resolve_layers(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Non-negative indices of the layers a config names, of ``count`` hidden states; -1 is the last.

    Raises:
        TeacherRefused: a layer the teacher does not have, or one named twice.
    """
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise TeacherRefused(
            f"labels.hidden.layers asks for layer {wrong[0]}, but the teacher has {count} hidden states: " + (
                f"0 (the embeddings) to {count - 1}, or -1 to {-count} from the end" if count else "it shows none"))
    found = tuple(layer % count for layer in layers)
    if len(set(found)) != len(found):
        raise TeacherRefused(
            f"labels.hidden.layers {list(layers)} names a layer twice: of {count} they are {list(found)}")
    return found
