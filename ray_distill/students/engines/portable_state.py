"""Save and load an engine's state as atoms: one whole float32 tensor a parameter and state.

The atoms of a parameter are its master weight and its optimiser states. An atom does not depend on how its parameter
was partitioned, so an engine, at any number of ranks and any ZeRO stage, reads the files of any other engine. Files are
safetensors: nothing is unpickled. Parameters are gathered one at a time and distributed over the ranks to be written,
so that no rank ever has all of them in memory.

    atoms-<rank>.safetensors    <parameter>::weight, <parameter>::<name of a state>; the first rank's: buffer::<name>
    atoms.json                  format, names of the states, the optimiser's step, the engine's own values
"""

import heapq
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_distill.errors import TrainingError
from ray_distill.students.process_group import Ranks

_FACTS = "atoms.json"
_FORMAT = 1
#: Name of the master weight among a parameter's atoms.
WEIGHT = "weight"
_BUFFER = "buffer"


class StateAccess(Protocol):
    """Access to an engine's master weights and optimiser states; every method is collective."""

    def states(self) -> tuple[str, ...]:
        """Return the names of the optimiser's tensors of a parameter.

        Adam has ``exp_avg`` and ``exp_avg_sq``.
        """

    def step(self) -> float:
        """Return the number of steps that the optimiser has counted."""

    def read(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """Return one whole atom; None = the parameter has no such state.

        It is in float32, in the shape of the parameter.
        """

    def prepare(self, states: Sequence[str], step: float) -> None:
        """Create states of zeros that a new optimiser does not have yet, and set its step."""

    def write(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Set one atom from its whole value on the CPU."""

    def release(self) -> None:
        """Drop values derived from the master weights, before these are changed in place.

        `finish` is called afterwards.
        """

    def finish(self) -> None:
        """Copy the master weights to the parameters that compute."""


def save_atoms(folder: Path, module: nn.Module, parts: StateAccess, ranks: Ranks, *, own: Mapping[str, Any]) -> None:
    """Write this rank's share of the atoms; collective.

    ``own`` is plain JSON, which `load_atoms` returns.
    """
    share: dict[str, Tensor] = {}
    names, trained = (WEIGHT, *parts.states()), _trained(module)
    owners = iter(assign_writers([_size(parameter) for _, parameter in trained for _ in names], ranks.world))
    for parameter_name, parameter in trained:
        for name in names:
            value, owner = parts.read(parameter, name), next(owners)
            if value is not None and owner == ranks.rank:
                share[f"{parameter_name}::{name}"] = value.detach().to("cpu", copy=True).contiguous()
    if ranks.first:
        share |= {
            f"{_BUFFER}::{name}": value.detach().to("cpu", copy=True).contiguous() for name, value in _buffers(module)
        }
        facts = {"format": _FORMAT, "states": list(parts.states()), "step": parts.step(), "own": dict(own)}
        (folder / _FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    save_file(share, folder / f"atoms-{ranks.rank:05d}.safetensors")


def assign_writers(sizes: Sequence[int], world: int) -> list[int]:
    """Return the rank that writes each atom.

    Atoms are assigned largest first, each to the rank with the fewest elements so far.
    """
    owners, heap = [0] * len(sizes), [(0, rank) for rank in range(world)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, owners[number] = heap[0]
        heapq.heapreplace(heap, (load + sizes[number], owners[number]))
    return owners


def load_atoms(folder: Path, module: nn.Module, parts: StateAccess) -> dict[str, Any]:
    """Set module and optimiser from the atoms of all ranks, in one folder, and return ``own``.

    Raises:
        TrainingError: atoms are missing, have another shape, or have a format that this version does not read.
    """
    facts = _facts(folder)
    with torch.no_grad(), _Atoms(folder) as atoms:
        parts.prepare(facts["states"], facts["step"])
        for parameter_name, parameter in _trained(module):
            for name in (WEIGHT, *facts["states"]):
                value = atoms.get(f"{parameter_name}::{name}", needed=name == WEIGHT)
                if value is not None:
                    _require_shape(parameter_name, value, getattr(parameter, "ds_shape", parameter.shape))
                    parts.write(parameter, name, value)
        for name, buffer in _buffers(module):
            value = atoms.get(f"{_BUFFER}::{name}", needed=True)
            assert value is not None
            buffer.copy_(value)
        parts.finish()
    own: dict[str, Any] = facts["own"]
    return own


class WholeStateAccess:
    """`StateAccess` of an optimiser of whole parameters, or of whole float32 copies of them.

    Args:
        optimizer: Adam or a similar optimiser.
        masters: the optimised float32 copy by parameter; a parameter without an entry is optimised itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, masters: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        self._optimizer = optimizer
        self._masters = dict(masters or {})

    def states(self) -> tuple[str, ...]:
        """See `StateAccess`."""
        return tensor_states(self._optimizer)

    def step(self) -> float:
        """See `StateAccess`."""
        return counted_steps(self._optimizer)

    def read(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """See `StateAccess`."""
        master = self._master(parameter)
        if name == WEIGHT:
            return torch.as_tensor(master).float()
        state: Mapping[str, Tensor] = self._optimizer.state.get(master, {})
        return state.get(name)

    def prepare(self, states: Sequence[str], step: float) -> None:
        """See `StateAccess`."""
        for group in self._optimizer.param_groups:
            make_states(self._optimizer, group["params"], states, step)

    def write(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """See `StateAccess`."""
        master = self._master(parameter)
        (master if name == WEIGHT else self._optimizer.state[master][name]).copy_(value)

    def release(self) -> None:
        """See `StateAccess`; there are no derived values."""

    def finish(self) -> None:
        """See `StateAccess`."""
        for parameter, master in self._masters.items():
            parameter.copy_(master)

    def _master(self, parameter: nn.Parameter) -> Any:
        return self._masters.get(parameter, parameter)


def tensor_states(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of an optimiser's states that have the shape of their parameter."""
    found = {
        name: None
        for tensor, state in optimizer.state.items()
        for name, value in state.items()
        if torch.is_tensor(value) and value.shape == tensor.shape and name != "step"
    }
    return tuple(found)


def counted_steps(optimizer: torch.optim.Optimizer) -> float:
    """Return the step that an optimiser has counted; 0 without states.

    It is the greatest step in the states.
    """
    return max((float(state["step"]) for state in optimizer.state.values() if "step" in state), default=0.0)


def make_states(
    optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor], states: Sequence[str], step: float
) -> None:
    """Create the missing states of each tensor, as zeros, and set its step.

    The step has the type that the optimiser itself would use.
    """
    of_torch = type(optimizer).__module__.startswith("torch.")
    for tensor in tensors:
        state = optimizer.state[tensor]
        state.update({name: torch.zeros_like(tensor, requires_grad=False) for name in states if name not in state})
        state["step"] = torch.tensor(step, dtype=torch.float32) if of_torch else int(step)


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the trainable parameters, in the same order on every rank.

    A parameter that modules share occurs once.
    """
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _size(parameter: nn.Parameter) -> int:
    """Return the number of elements of a whole parameter, partitioned or not."""
    return math.prod(getattr(parameter, "ds_shape", parameter.shape))


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers that belong to the state: running statistics, counts."""
    kept = module.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in kept]


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: the engine's {_FACTS} cannot be read ({error})") from error
    if facts.get("format") != _FORMAT:
        raise TrainingError(
            f"{folder}: the engine's state has format {facts.get('format')}, this version reads "
            f"{_FORMAT}: train on with the version that wrote it"
        )
    return facts


def _require_shape(name: str, value: Tensor, expected: Sequence[int]) -> None:
    if tuple(value.shape) != tuple(expected):
        raise TrainingError(
            f"the checkpoint has {name} with shape {tuple(value.shape)}, the student has "
            f"{tuple(expected)}: resume with the student that was trained"
        )


class _Atoms:
    """The atoms of all ranks' files, each read on request."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "_Atoms":
        files: list[Any] = [
            safe_open(path, framework="pt") for path in sorted(self._folder.glob("atoms-*.safetensors"))
        ]
        self._where = {key: file for file in files for key in file.keys()}  # noqa: SIM118  (no mapping)
        return self

    def __exit__(self, *_: object) -> None:
        self._where.clear()

    def get(self, key: str, *, needed: bool) -> Tensor | None:
        """Return one atom; None if it is absent and not ``needed``."""
        if key in self._where:
            value: Tensor = self._where[key].get_tensor(key)
            return value
        if not needed:
            return None
        raise TrainingError(
            f"the checkpoint lacks {key.replace('::', ', ')}: it belongs to another student; resume with "
            "the student that was trained"
        )
