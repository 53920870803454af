"""Resolve the layers that a config names."""

from ray_distill.errors import TeacherRefused


def resolve_layers(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Resolve the layers of a config to non-negative indices into ``count`` hidden states.

    Raises:
        TeacherRefused: a layer the teacher does not have, or one named twice.
    """
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise TeacherRefused(
            f"labels.hidden.layers has layer {wrong[0]}, but the teacher has {count} hidden states: "
            + (f"0 (the embeddings) to {count - 1}, or -1 to {-count} from the end" if count else "it shows none")
        )
    found = tuple(layer % count for layer in layers)
    if len(set(found)) != len(found):
        raise TeacherRefused(
            f"labels.hidden.layers {list(layers)} names a layer twice: of {count} they are {list(found)}"
        )
    return found
