"""From logits to the stored form of a distribution, in float32, on the device the logits are on."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.errors import TeacherRefused
from ray_distill.labels import rowids
from ray_distill.labels.signal import Distributions, Draws
from ray_distill.teachers.base import Ask
from ray_distill.teachers.draw import pick, stratified

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


def reduce_logits(
    logits_NV: Tensor, ask: Ask, row_ids: pa.Array | None = None, places: Places | None = None
) -> Distributions:
    """Reduce logits to the stored form an estimator asks for (MATHS.md §1-3): one position a row, or ``places``.

    ``dense`` and ``topk`` keep exact classes. ``sampled`` keeps the classes hit by ``ask.draws`` points of the inverse
    CDF of ``r ∝ p^a``; ``hybrid`` keeps the exact top k and draws from r over the others. The points are stratified
    and seeded by row id (`ray_distill.teachers.draw`): ``E[count_j] = N r_j`` with no more variance than independent
    draws, and a row's answer owes nothing to its batch. ``hybrid`` with k ≥ V is dense, every count 0.

    ``log_tail`` at T is the share of the classes that are not stored: a logsumexp over them where they hold less than
    half of the mass (``1 - Σp`` would cancel), the complement of the stored share where they hold more. Where nothing
    is outside it is -inf. Rows with NaN logits come out as NaN (logp, entropy): who stores them decides what becomes
    of them. Works in slices of `_SLICE` elements: no second copy of all the logits exists.

    Raises:
        TeacherRefused: the estimator is unknown, or it draws and there are no draws or row ids.
    """
    places = one_a_row(len(logits_NV)) if places is None else places
    rows, positions, classes = len(places.row_offsets) - 1, len(places.position), logits_NV.shape[1]
    _check(ask, rows, row_ids)
    step = max(1, min(_SLICE, _CPU_SLICE if logits_NV.device.type == "cpu" else _SLICE) // classes)
    ids_P = None if row_ids is None or ask.estimator not in DRAWN else np.repeat(
        rowids.to_numpy(row_ids), np.diff(places.row_offsets))
    parts = [_reduce(_slice(logits_NV, places, at, at + step), ask, _seeds(ids_P, places, at, at + step))
             for at in range(0, max(positions, 1), step)]
    entry_offsets = np.zeros(positions + 1, np.int64)
    np.cumsum(_host([part.length_n for part in parts]), out=entry_offsets[1:])
    return Distributions(
        classes=classes, temperatures=ask.temperatures, row_offsets=places.row_offsets,
        position=places.position, entry_offsets=entry_offsets,
        ids=_host([part.ids_E for part in parts]), logp=_host([part.logp_E for part in parts]),
        log_tail=_host([part.tail_nT for part in parts]), entropy=_host([part.entropy_n for part in parts]),
        draws=None if ask.estimator not in DRAWN else Draws(
            number=ask.draws, exponent=ask.exponent, count=_host([part.count_E for part in parts]),
            log_normaliser=_host([part.log_normaliser_n for part in parts])))


def one_a_row(rows: int) -> Places:
    """Where the logits of a classifier stand: row r is answered by logits r, at position 0."""
    return Places(
        row_offsets=np.arange(rows + 1, dtype=np.int64), position=np.zeros(rows, np.int32), logits=None)


def _slice(logits_NV: Tensor, places: Places, start: int, stop: int) -> Tensor:
    if places.logits is None:
        return logits_NV[start:stop].float()
    return logits_NV[torch.from_numpy(places.logits[start:stop]).to(logits_NV.device)].float()


def _seeds(ids_P: npt.NDArray[np.bytes_] | None, places: Places, start: int, stop: int) -> Seeds | None:
    return None if ids_P is None else (ids_P[start:stop], places.position[start:stop])


def _check(ask: Ask, rows: int, row_ids: pa.Array | None) -> None:
    if ask.estimator not in ("dense", "topk", *DRAWN):
        raise TeacherRefused(
            f"this teacher cannot give the estimator {ask.estimator!r}: use dense, topk, sampled or hybrid")
    if ask.estimator not in DRAWN:
        return
    if ask.draws < 1 or not ask.exponent >= 0:
        raise TeacherRefused(f"the estimator {ask.estimator!r} needs at least one draw and an exponent of 0 or more, "
                             f"found {ask.draws} draws and the exponent {ask.exponent:g}")
    if row_ids is None or len(row_ids) != rows:
        raise TeacherRefused(
            f"the estimator {ask.estimator!r} seeds its draws by row id: {rows} rows of logits came with "
            f"{'no' if row_ids is None else len(row_ids)} row ids; pass the id of every row")


def _reduce(logits_NV: Tensor, ask: Ask, seeds: Seeds | None) -> _Part:
    logp_NV = logits_NV.log_softmax(-1)
    p_NV = logp_NV.exp()
    # p is 0 far above this bound: 0 · -inf is kept out of the sum, and NaN is not.
    entropy_N = -torch.linalg.vecdot(p_NV, logp_NV.clamp(min=-1e4))
    classes = logp_NV.shape[1]
    head = {"dense": classes, "sampled": 0}.get(ask.estimator, min(ask.k, classes))
    if head == classes:
        return _all(logp_NV, len(ask.temperatures), entropy_N)
    head_NK = logp_NV.topk(head, dim=-1).indices
    if seeds is None:
        no_draws = head_NK[:, :0]
        return _part(logp_NV, p_NV, head_NK, no_draws, ask, entropy_N, torch.full_like(entropy_N, -math.inf))
    points_ND = stratified(*seeds, draws=ask.draws, seed=ask.seed)
    weight_NV = p_NV if ask.exponent == 1 else _proposal(logp_NV, ask.exponent)
    weight_NV = weight_NV.scatter(-1, head_NK, 0.0) if head else weight_NV
    drawn_ND, total_N = pick(weight_NV, torch.from_numpy(points_ND).to(logp_NV.device))
    log_normaliser_N = total_N.log().float()
    if ask.estimator == "sampled" and ask.exponent == 1:
        log_normaliser_N = log_normaliser_N * 0.0  # exactly 0, and NaN stays NaN
    elif head:
        # Nothing to draw from (the head has all the mass): the draws are made to repeat the head, and so vanish.
        drawn_ND = torch.where((total_N > 0).unsqueeze(-1), drawn_ND, head_NK[:, :1])
    return _part(logp_NV, p_NV, head_NK, drawn_ND, ask, entropy_N, log_normaliser_N)


def _all(logp_NV: Tensor, temperatures: int, entropy_N: Tensor) -> _Part:
    """Every class, exact; nothing is outside and nothing is left to draw from."""
    rows, classes = logp_NV.shape
    ids_NV = torch.arange(classes, dtype=torch.int32, device=logp_NV.device).expand(rows, classes)
    return _Part(
        length_n=torch.full((rows,), classes, device=logp_NV.device), ids_E=ids_NV.reshape(-1),
        logp_E=logp_NV.reshape(-1), count_E=torch.zeros_like(ids_NV).reshape(-1),
        tail_nT=logp_NV.new_full((rows, temperatures), -math.inf), entropy_n=entropy_N,
        log_normaliser_n=torch.full_like(entropy_N, -math.inf))


def _proposal(logp_NV: Tensor, exponent: float) -> Tensor:
    """``p^a`` unnormalised; a class without mass is never proposed, at a = 0 neither."""
    return torch.where(logp_NV == -math.inf, 0.0, (exponent * logp_NV).exp())


def _part(
    logp_NV: Tensor, p_NV: Tensor, head_NK: Tensor, drawn_ND: Tensor, ask: Ask, entropy_N: Tensor,
    log_normaliser_N: Tensor,
) -> _Part:
    """Merge head and draws into unique ascending entries; a head's entry comes before a draw of the same class.

    ``p_NV`` is used up.
    """
    ids_NM, order_NM = torch.cat([head_NK, drawn_ND], -1).sort(dim=-1, stable=True)
    first_NM = torch.ones_like(ids_NM, dtype=torch.bool)
    first_NM[:, 1:] = ids_NM[:, 1:] != ids_NM[:, :-1]
    logp_NM = logp_NV.gather(-1, ids_NM)
    start_E = first_NM.reshape(-1).nonzero().squeeze(-1)
    run_E = torch.diff(start_E, append=start_E.new_tensor([first_NM.numel()]))
    exact_E = order_NM.reshape(-1)[start_E] < head_NK.shape[1]
    return _Part(
        length_n=first_NM.sum(-1), ids_E=ids_NM.reshape(-1)[start_E].int(), logp_E=logp_NM.reshape(-1)[start_E],
        count_E=run_E.masked_fill(exact_E, 0).int(), entropy_n=entropy_N, log_normaliser_n=log_normaliser_N,
        tail_nT=_log_tails(logp_NV, p_NV, ids_NM, first_NM, ask.temperatures))


def _log_tails(
    logp_NV: Tensor, p_NV: Tensor, ids_NM: Tensor, first_NM: Tensor, temperatures: tuple[float, ...]
) -> Tensor:
    """Log of the mass outside the ids at each temperature, with a small relative error at either end: ``[N, T]``.

    ``first_NM`` marks each id once; ``p_NV`` are the probabilities at T = 1, and are used up.
    """
    tails = []
    for temperature in temperatures:
        soft_NV = p_NV if temperature == 1 else (logp_NV / temperature).softmax(-1)
        inside_N = soft_NV.gather(-1, ids_NM).masked_fill(~first_NM, 0.0).sum(-1)
        outside_N = soft_NV.scatter_(-1, ids_NM, 0.0).sum(-1)
        tail_N = torch.where(outside_N > inside_N, torch.log1p(-inside_N), outside_N.log())
        if bool((tiny_N := outside_N < _TINY).any()):
            tail_N[tiny_N] = _log_tail(logp_NV[tiny_N] / temperature, ids_NM[tiny_N])
        tails.append(tail_N)
    return torch.stack(tails, -1)


def _log_tail(scaled_NV: Tensor, ids_NM: Tensor) -> Tensor:
    """Log of the mass outside the ids, however small: a logsumexp over the complement."""
    outside_N = scaled_NV.scatter(-1, ids_NM, -math.inf).logsumexp(-1)
    return outside_N - scaled_NV.logsumexp(-1)


def _host(columns: list[Tensor]) -> npt.NDArray[Any]:
    """Slices of one column, joined and copied to the host."""
    joined: npt.NDArray[Any] = torch.cat(columns).cpu().numpy()
    return joined
