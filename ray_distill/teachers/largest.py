"""Select the k largest of many classes in two steps: the costliest part of a reduction."""

from torch import Tensor

#: Classes whose maximum is taken together, the first that divides their number.
GROUPS = (64, 32, 16)

#: Least share of the classes that the second step must spare, or one step is cheaper.
SPARED = 4


def largest(values_NV: Tensor, k: int) -> Tensor:
    """Return indices ``[N, k]`` of the k largest of each row, in any order; of equal values any.

    The k largest lie in those k groups of classes whose maxima are largest: only these are searched. NaN is larger
    than all.
    """
    rows, classes = values_NV.shape
    size = next((size for size in GROUPS if classes % size == 0 and SPARED * k * size <= classes), 0)
    if not size:
        return values_NV.topk(k, dim=-1, sorted=False).indices
    # Group c has the classes c, c + groups, c + 2 groups, …: their maxima are taken along whole lines of memory.
    lines_NSG = values_NV.view(rows, size, classes // size)
    group_NK = lines_NSG.amax(1).topk(k, dim=-1, sorted=False).indices
    among_NM = lines_NSG.gather(2, group_NK.unsqueeze(1).expand(-1, size, -1)).view(rows, -1)
    at_NK = among_NM.topk(k, dim=-1, sorted=False).indices
    return group_NK.gather(1, at_NK % k) + at_NK // k * (classes // size)
