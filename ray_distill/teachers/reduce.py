"""Reduce logits to the stored form of a distribution, in float32, on their device."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.errors import TeacherRefused
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.draw import pick, stratified
from ray_distill.teachers.largest import largest

#: Elements of a float32 slice; bounds the copies of the logits that exist at once.
_SLICE = 1 << 24
#: On a CPU: several passes are made over a slice, and only what stays in a core's cache is passed over fast.
_CPU_SLICE = 1 << 19
#: Tails smaller than this are summed as logarithms: as probabilities they would vanish.
_TINY = 1e-30

DRAWN = ("sampled", "hybrid")

#: Row id and position of each of some positions.
Seeds = tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int32]]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which logits answer which position of which row."""

    row_offsets: npt.NDArray[np.int64]
    """``[R+1]``: row r owns positions ``row_offsets[r]:row_offsets[r+1]``."""
    position: npt.NDArray[np.int32]
    """``[P]``: where in its row; seeds the draws with the row's id."""
    logits: npt.NDArray[np.int64] | None
    """``[P]``: row of the logits; None where there is one for each position, in order."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A slice of positions in stored form, on the device. n positions, E entries."""

    length_n: Tensor
    """int64: entries a position."""
    ids_E: Tensor
    logp_E: Tensor
    count_E: Tensor
    """int32; 0 where the entry was not drawn."""
    tail_nT: Tensor
    entropy_n: Tensor
    log_normaliser_n: Tensor


@dataclass(frozen=True, kw_only=True)
class _Room:
    """Memory of one slice, reused for all: allocating it for each would cost more than the work."""

    s_NV: Tensor
    p_NV: Tensor
    spare_NV: Tensor

    @classmethod
    def of(cls, positions: int, logits_NV: Tensor) -> "_Room":
        """Allocate room for so many positions, in float32, on the device of the logits."""
        shape = (positions, logits_NV.shape[1])
        s_NV, p_NV, spare_NV = (torch.empty(shape, dtype=torch.float32, device=logits_NV.device) for _ in range(3))
        return cls(s_NV=s_NV, p_NV=p_NV, spare_NV=spare_NV)


@dataclass(frozen=True, kw_only=True)
class _Soft:
    """A slice of positions before the reduction, in float32: ``log p = s - log_total``."""

    s_NV: Tensor
    """Logits less the largest of their position."""
    p_NV: Tensor
    """Probabilities at T = 1, until the tails are taken."""
    spare_NV: Tensor
    """To work in."""
    log_total_N: Tensor


def reduce_logits(
    logits_NV: Tensor, request: LabelRequest, row_ids: pa.Array | None = None, places: Places | None = None
) -> Distributions:
    """Reduce logits to the stored form of an estimator (MATHS.md §1-3), at ``places``.

    ``dense`` and ``topk`` keep exact classes. ``sampled`` keeps the classes hit by ``request.draws`` points of the
    inverse CDF of ``r ∝ p^a``; ``hybrid`` keeps the exact top k and draws from r over the others. The points are
    stratified and seeded by row id (`ray_distill.teachers.draw`): ``E[count_j] = N r_j`` with no more variance than
    independent draws, and a row's answer owes nothing to its batch. ``hybrid`` with k ≥ V is dense, every count 0.

    ``log_tail`` at T is the share of the classes that are not stored: a logsumexp over them where they have less than
    half of the mass (``1 - Σp`` would cancel), else the complement of the stored share. Where nothing
    is outside it is -inf. Rows with NaN logits come out as NaN (logp, entropy): who stores them decides what becomes
    of them. Works in slices of `_SLICE` elements, in memory taken once: no second copy of all the logits exists.

    Raises:
        TeacherRefused: the estimator is unknown, or it draws and there are no draws or row ids.
    """
    places = one_a_row(len(logits_NV)) if places is None else places
    rows, positions, classes = len(places.row_offsets) - 1, len(places.position), logits_NV.shape[1]
    _check(request, rows, row_ids)
    step = max(1, min(_SLICE, _CPU_SLICE if logits_NV.device.type == "cpu" else _SLICE) // classes)
    room = _Room.of(min(step, positions), logits_NV)
    ids_P = (
        None
        if row_ids is None or request.estimator not in DRAWN
        else np.repeat(rowids.to_numpy(row_ids), np.diff(places.row_offsets))
    )
    parts = [
        _reduce(
            _soften(logits_NV, places, start=at, stop=at + step, room=room),
            request,
            _seeds(ids_P, places, at, at + step),
        )
        for at in range(0, max(positions, 1), step)
    ]
    entry_offsets = np.zeros(positions + 1, np.int64)
    np.cumsum(_host([part.length_n for part in parts]), out=entry_offsets[1:])
    return Distributions(
        classes=classes,
        temperatures=request.temperatures,
        row_offsets=places.row_offsets,
        position=places.position,
        entry_offsets=entry_offsets,
        ids=_host([part.ids_E for part in parts]),
        logp=_host([part.logp_E for part in parts]),
        log_tail=_host([part.tail_nT for part in parts]),
        entropy=_host([part.entropy_n for part in parts]),
        draws=None
        if request.estimator not in DRAWN
        else Draws(
            number=request.draws,
            exponent=request.exponent,
            count=_host([part.count_E for part in parts]),
            log_normaliser=_host([part.log_normaliser_n for part in parts]),
        ),
    )


def one_a_row(rows: int) -> Places:
    """Return the places of one answer a row: logits r answer row r, at position 0."""
    return Places(row_offsets=np.arange(rows + 1, dtype=np.int64), position=np.zeros(rows, np.int32), logits=None)


def _soften(logits_NV: Tensor, places: Places, *, start: int, stop: int, room: _Room) -> _Soft:
    """Compute the softmax of a slice of positions, in the memory of ``room``."""
    s_NV, p_NV, spare_NV = (
        buffer[: min(stop, len(places.position)) - start] for buffer in (room.s_NV, room.p_NV, room.spare_NV)
    )
    _copy(logits_NV, None if places.logits is None else places.logits[start:stop], start, s_NV)
    s_NV.sub_(s_NV.amax(-1, keepdim=True))
    torch.softmax(s_NV, -1, out=p_NV)
    # The largest of s is 0, so the largest of p is 1 over the sum.
    return _Soft(s_NV=s_NV, p_NV=p_NV, spare_NV=spare_NV, log_total_N=-p_NV.amax(-1).log())


def _copy(logits_NV: Tensor, rows: npt.NDArray[np.int64] | None, start: int, out_NV: Tensor) -> None:
    """Copy logits from ``start`` on, or of ``rows``, to float32."""
    if rows is None:
        out_NV.copy_(logits_NV[start : start + len(out_NV)])
        return
    at_N = torch.from_numpy(rows).to(logits_NV.device)
    if logits_NV.dtype == out_NV.dtype:
        torch.index_select(logits_NV, 0, at_N, out=out_NV)
    else:
        out_NV.copy_(logits_NV.index_select(0, at_N))


def _seeds(ids_P: npt.NDArray[np.bytes_] | None, places: Places, start: int, stop: int) -> Seeds | None:
    return None if ids_P is None else (ids_P[start:stop], places.position[start:stop])


def _check(request: LabelRequest, rows: int, row_ids: pa.Array | None) -> None:
    if request.estimator not in ("dense", "topk", *DRAWN):
        raise TeacherRefused(
            f"this teacher cannot give the estimator {request.estimator!r}: use dense, topk, sampled or hybrid"
        )
    if request.estimator not in DRAWN:
        return
    if request.draws < 1 or not request.exponent >= 0:
        raise TeacherRefused(
            f"the estimator {request.estimator!r} needs at least one draw and an exponent of 0 or more, "
            f"found {request.draws} draws and the exponent {request.exponent:g}"
        )
    if row_ids is None or len(row_ids) != rows:
        raise TeacherRefused(
            f"the estimator {request.estimator!r} seeds its draws by row id: {rows} rows of logits came with "
            f"{'no' if row_ids is None else len(row_ids)} row ids; pass the id of every row"
        )


def _reduce(soft: _Soft, request: LabelRequest, seeds: Seeds | None) -> _Part:
    entropy_N, classes = _entropy(soft), soft.s_NV.shape[1]
    head = {"dense": classes, "sampled": 0}.get(request.estimator, min(request.k, classes))
    if head == classes:
        return _all(soft, len(request.temperatures), entropy_N)
    head_NK = largest(soft.s_NV, head)
    if seeds is None:
        no_draws = head_NK[:, :0]
        return _part(
            soft,
            head_NK,
            no_draws,
            request=request,
            entropy_N=entropy_N,
            log_normaliser_N=torch.full_like(entropy_N, -math.inf),
        )
    points_ND = stratified(*seeds, draws=request.draws, seed=request.seed)
    drawn_ND, total_N = pick(_proposal(soft, request.exponent, head_NK), torch.from_numpy(points_ND).to(head_NK.device))
    log_normaliser_N = total_N.log().float()
    if request.estimator == "sampled" and request.exponent == 1:
        log_normaliser_N = log_normaliser_N * 0.0  # exactly 0, and NaN stays NaN
    elif head:
        # Nothing to draw from (the head has all the mass): the draws are made to repeat the head, and so vanish.
        drawn_ND = torch.where((total_N > 0).unsqueeze(-1), drawn_ND, head_NK[:, :1])
    return _part(soft, head_NK, drawn_ND, request=request, entropy_N=entropy_N, log_normaliser_N=log_normaliser_N)


def _entropy(soft: _Soft) -> Tensor:
    """Return ``[N]``: the log of the sum less the mean of s."""
    # p is 0 far above this bound: 0 · -inf is kept out of the sum, and NaN is not.
    torch.clamp(soft.s_NV, min=-1e4, out=soft.spare_NV)
    return soft.log_total_N - soft.spare_NV.mul_(soft.p_NV).sum(-1)


def _all(soft: _Soft, temperatures: int, entropy_N: Tensor) -> _Part:
    """Keep every class, exact; nothing is outside and nothing is left to draw from."""
    rows, classes = soft.s_NV.shape
    ids_NV = torch.arange(classes, dtype=torch.int32, device=entropy_N.device).expand(rows, classes)
    return _Part(
        length_n=torch.full((rows,), classes, device=entropy_N.device),
        ids_E=ids_NV.reshape(-1),
        logp_E=(soft.s_NV - soft.log_total_N.unsqueeze(-1)).reshape(-1),
        count_E=torch.zeros_like(ids_NV).reshape(-1),
        tail_nT=entropy_N.new_full((rows, temperatures), -math.inf),
        entropy_n=entropy_N,
        log_normaliser_n=torch.full_like(entropy_N, -math.inf),
    )


def _proposal(soft: _Soft, exponent: float, head_NK: Tensor) -> Tensor:
    """Return unnormalised ``p^a`` without the head; classes without mass get 0, also at a = 0."""
    weight_NV = soft.p_NV
    if exponent != 1:
        log_NV = exponent * (soft.s_NV - soft.log_total_N.unsqueeze(-1))
        weight_NV = torch.where(soft.s_NV == -math.inf, 0.0, log_NV.exp())
    return weight_NV.scatter(-1, head_NK, 0.0) if head_NK.shape[1] else weight_NV


def _part(
    soft: _Soft,
    head_NK: Tensor,
    drawn_ND: Tensor,
    *,
    request: LabelRequest,
    entropy_N: Tensor,
    log_normaliser_N: Tensor,
) -> _Part:
    """Merge head and draws into unique ascending entries; the head wins over equal draws."""
    ids_NM, order_NM = torch.cat([head_NK, drawn_ND], -1).sort(dim=-1, stable=True)
    first_NM = torch.ones_like(ids_NM, dtype=torch.bool)
    first_NM[:, 1:] = ids_NM[:, 1:] != ids_NM[:, :-1]
    logp_NM = soft.s_NV.gather(-1, ids_NM) - soft.log_total_N.unsqueeze(-1)
    start_E = first_NM.reshape(-1).nonzero().squeeze(-1)
    run_E = torch.diff(start_E, append=start_E.new_tensor([first_NM.numel()]))
    exact_E = order_NM.reshape(-1)[start_E] < head_NK.shape[1]
    return _Part(
        length_n=first_NM.sum(-1),
        ids_E=ids_NM.reshape(-1)[start_E].int(),
        logp_E=logp_NM.reshape(-1)[start_E],
        count_E=run_E.masked_fill(exact_E, 0).int(),
        entropy_n=entropy_N,
        log_normaliser_n=log_normaliser_N,
        tail_nT=_log_tails(soft, ids_NM, first_NM, request.temperatures),
    )


def _log_tails(soft: _Soft, ids_NM: Tensor, first_NM: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Return the log mass outside the ids at each temperature ``[N, T]``, accurate at both ends.

    ``first_NM`` marks each id once. The probabilities of ``soft`` are used up.
    """
    tails = {}
    for temperature in sorted(temperatures, key=lambda value: value != 1):  # p first: its memory is used after that
        if temperature != 1:
            torch.softmax(torch.div(soft.s_NV, temperature, out=soft.spare_NV), -1, out=soft.p_NV)
        inside_N = soft.p_NV.gather(-1, ids_NM).masked_fill(~first_NM, 0.0).sum(-1)
        outside_N = soft.p_NV.scatter_(-1, ids_NM, 0.0).sum(-1)
        tail_N = torch.where(outside_N > inside_N, torch.log1p(-inside_N), outside_N.log())
        if bool((tiny_N := outside_N < _TINY).any()):
            tail_N[tiny_N] = _log_tail(soft.s_NV[tiny_N] / temperature, ids_NM[tiny_N])
        tails[temperature] = tail_N
    return torch.stack([tails[temperature] for temperature in temperatures], -1)


def _log_tail(scaled_NV: Tensor, ids_NM: Tensor) -> Tensor:
    """Log of the mass outside the ids, however small: a logsumexp over the complement."""
    outside_N = scaled_NV.scatter(-1, ids_NM, -math.inf).logsumexp(-1)
    return outside_N - scaled_NV.logsumexp(-1)


def _host(columns: list[Tensor]) -> npt.NDArray[Any]:
    """Join slices of one column and copy them to the host."""
    joined: npt.NDArray[Any] = torch.cat(columns).cpu().numpy()
    return joined
