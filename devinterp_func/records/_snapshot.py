"""A snapshot: a run's weights before a step, and its optimizer's state where that remembers anything.

Training goes on from it. The state is written first: where the weights are, the snapshot is whole.
"""

from devinterp_func import tree
from devinterp_func.optim import Optimizer, State
from devinterp_func.records._directory import file_path, numbers
from devinterp_func.records._machine import on_device
from devinterp_func.records._manifest import RunPath
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._step import equal_bits
from devinterp_func.records._store import read_params, read_state, write_params, write_state
from devinterp_func.tree import Params


def write_snapshot(run: RunPath, optimizer: Optimizer, step: int, params: Params, state: State) -> None:
    """Stores weights and state before ``step``; the steps up to it are already written.

    Raises:
        RecordError: as ``write_params``, or a crash has left another state there than this one.
    """
    if optimizer.remembers:
        if step not in numbers(run, "state"):
            write_state(run, step, state)
        elif differing := _difference(_named({}, state), _named({}, read_state(run, step))):
            raise RecordError(f"{_off(run, step, differing)} Nothing was changed; go on there, or start a new run")
    write_params(run, step, params)


def read_snapshot(run: RunPath, optimizer: Optimizer, step: int, device: str) -> tuple[Params, State]:
    """Weights and state before a step, on a device.

    Raises:
        RecordError: they are not stored for this step, they are damaged, or the state is not one of this optimizer.
    """
    params = on_device(read_params(run, step), device)
    own = optimizer.init(params)._replace(steps=step)
    if not optimizer.remembers:
        return params, own
    stored = tree.map(lambda x: x.to(device), read_state(run, step).buffers)
    found = own._replace(buffers={name: stored.get(name, {}) for name in own.buffers})
    kinds = [{name: (x.shape, x.dtype) for name, x in _named({}, state).items()} for state in (own, found)]
    if kinds[0] != kinds[1] or stored.keys() - own.buffers.keys():
        raise RecordError(f"{file_path(run, 'state', step)}: not what the run's optimizer remembers of its parameters")
    return params, found


def require_snapshot(run: RunPath, optimizer: Optimizer, step: int, params: Params, state: State) -> None:
    """Holds replayed weights and state against the snapshot of their step.

    Raises:
        RecordError: a tensor differs in any bit; it is named, with how far it is off.
    """
    there = _named(*read_snapshot(run, optimizer, step, "cpu"))
    if differing := _difference(_named(params, state), there):
        raise RecordError(f"{_off(run, step, differing)} What follows would not be its steps")


def _named(params: Params, state: State) -> Params:
    """All tensors of a snapshot by what a person calls them."""
    return params | {f"{name} of {unit}": x for unit, own in state.buffers.items() for name, x in own.items()}


def _difference(here: Params, there: Params) -> tuple[str, float] | None:
    """The first tensor that differs, and by how much at most."""
    for name, found in here.items():
        if not equal_bits(found.cpu(), there[name]):
            return name, float((found.cpu() - there[name]).abs().max())
    return None


def _off(run: RunPath, step: int, differing: tuple[str, float]) -> str:
    name, by = differing
    return (
        f"{run}: {name} before step {step}, replayed, differs from the snapshot's by up to {by:.2g}. "
        "Was the run made on another machine?"
    )
