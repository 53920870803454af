"""List the losses that a configuration may name. A new loss is a file and a line here."""

from collections.abc import Mapping

from ray_distill.losses.base import Loss
from ray_distill.losses.cross_entropy import Hard, TeacherHard
from ray_distill.losses.hidden import HiddenMatch
from ray_distill.losses.relations import Cka, RkdAngle, RkdDistance
from ray_distill.losses.soft import Soft
from ray_distill.losses.token_relations import TokenRelation

#: Losses by name; the keyword arguments are the fields of the class.
LOSSES: Mapping[str, type[Loss]] = {
    "soft": Soft,
    "hard": Hard,
    "teacher_hard": TeacherHard,
    "hidden": HiddenMatch,
    "cka": Cka,
    "rkd_distance": RkdDistance,
    "rkd_angle": RkdAngle,
    "relation": TokenRelation,
}
