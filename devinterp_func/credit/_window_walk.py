"""A window's steps made again in memory: forwards, or the last first.

Backwards, weights and states are kept now and then on a first pass; then stretch after stretch is made again, last to
first. Of a run, ``records.backwards`` does the same on the disk.
"""

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from devinterp_func import training
from devinterp_func.credit._retrain import Window
from devinterp_func.optim import State
from devinterp_func.training import Move
from devinterp_func.tree import Params
from devinterp_func.units import Patterns

Seen = TypeVar("Seen")


def window_moves(window: Window, stop: int, captured: Patterns = ()) -> Iterator[Move]:
    """The steps from a window's start to a step; none where that is not after it.

    Args:
        window: of ``credit.window``, or made by hand.
        stop: step to stop before.
        captured: of ``training.moves``.
    """
    graph, params, state, data, recipe, start, _ = window
    if start < stop:
        yield from training.moves(graph, params, data, recipe, state=state, captured=captured, start=start, stop=stop)


def window_backwards(
    window: Window, look: Callable[[Move], Seen], kept: int, captured: Patterns = ()
) -> Generator[Seen, None, None]:
    """What a function finds in a window's steps, the last first.

    Args:
        window: with at least one step.
        look: what is found in a step; it sees the steps of a stretch in their own order.
        kept: steps of a stretch, of which all that is found is held at once.
        captured: of ``training.moves``.
    """
    firsts = range(window.start, window.stop, kept)
    starts: dict[int, tuple[Params, State]] = {window.start: (window.params, window.state)}
    for move in window_moves(window, firsts[-1]):
        if move.step + 1 in firsts:
            starts[move.step + 1] = move.after, move.state
    for first in reversed(firsts):
        params, state = starts.pop(first)
        stretch = window._replace(params=params, state=state, start=first)
        found = list(map(look, window_moves(stretch, min(first + kept, window.stop), captured)))
        while found:
            yield found.pop()
