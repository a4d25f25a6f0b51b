"""All tables of a run's phases at once: from what its steps are like, and from a few of its snapshots."""

from collections.abc import Callable, Sequence

import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devinterp_func import credit, keys, training
from devinterp_func.credit import Coherence, Course
from devinterp_func.records import Run
from devinterp_func.show.tables import _phase_dips as of_dips
from devinterp_func.show.tables import _phase_snapshots as of_snapshots
from devinterp_func.show.tables import _phases as of_steps
from devinterp_func.stats import Points
from devinterp_func.tree import Params

Losses = Callable[[Params], Float[Tensor, "c"]]


def phase_frames(
    label: str, run: Run, steps: Coherence, width: int, phrase: Sequence[int] = (), *, key: keys.Key | int
) -> tuple[dict[str, pl.DataFrame], Course, Points]:
    """Tables by name, what was cut, and the change points of all measures together.

    Args:
        label: of the run.
        run: whose data and units they are.
        steps: of ``credit.coherence``, stacked.
        width: steps of a window.
        phrase: tokens; texts in which they follow each other are told apart in what stands beside.
        key: of the draws by which change points of single measures are rotated.
    """
    names, start, stop = list(run.shapes), int(steps.step[0]), int(steps.step[-1]) + 1
    groups = of_steps.unit_groups(names)
    measured = credit.measure_windows(steps, list(groups.values()), width)
    course = of_steps.phase_course(measured)
    cuts = credit.cut_course(course)
    whole = cuts[credit.ALL]
    windows = of_steps.window_frame(label, measured, list(groups))
    segments = of_steps.segment_frame(windows, whole)
    datum = torch.stack([ids for *_, ids in training.order(run.recipe, run.n_data, start, stop)])
    spans = segments.select("from", "to").rows()
    made = credit.makers(steps, datum, run.data.tokens, run.graph.vocab_size, spans)
    beside = credit.run_circumstances(run, start, stop)
    of_kind, dips = kind_of(run, phrase), of_dips.dips(credit.step_sums(steps), width, key=key)
    frames = {
        "windows": windows,
        "changes": of_steps.change_frame(label, cuts, course),
        "segments": segments,
        "makers": of_steps.maker_frame(label, made, names),
        "models": of_steps.model_frame(label, whole),
        "coincidence": of_steps.coincidence_frame(label, cuts, course, key=key),
        "dips": of_dips.dip_frame(label, dips, width),
        "beside": of_dips.beside_frame(
            label, credit.beside_windows(steps, beside, of_kind, width), names, bool(len(phrase))
        ),
    }
    return frames, course, credit.change_points(whole, course)


def kind_of(run: Run, phrase: Sequence[int]) -> Bool[Tensor, "N"]:
    """Which of a run's texts have a phrase; none, where there is none."""
    if not len(phrase):
        return torch.zeros(run.n_data, dtype=torch.bool)
    return credit.contains_phrase(run.data, phrase)


def snapshot_frames(
    label: str, run: Run, windows: pl.DataFrame, full: Points, losses: Losses, snapshots: list[int], m: int
) -> dict[str, pl.DataFrame]:
    """Tables by name: what a few snapshots say, how near their change points come, how near their courses.

    Args:
        label: of the run.
        run: the run.
        windows: of ``window_frame``: the full record.
        full: its change points.
        losses: what the model can predict.
        snapshots: those to choose from, at least four.
        m: how many are few.
    """
    frames: dict[str, list[pl.DataFrame]] = {"snapshots": [], "answers": [], "courses": []}
    for spacing in credit.SPACINGS:
        chosen = credit.choose_snapshots(snapshots, m, spacing)
        measured = credit.measure_snapshots(((step, run.params(step)) for step in chosen), list(run.shapes), losses)
        course = credit.snapshot_course(measured, of_steps.LOSSES)
        few = credit.change_points(credit.snapshot_cut(course), course)
        answers = credit.snapshot_answers(full, few, chosen)
        frames["snapshots"].append(of_snapshots.snapshot_frame(label, spacing, measured))
        frames["answers"].append(of_snapshots.answer_frame(label, spacing, answers))
        frames["courses"].append(of_snapshots.snapshot_course_frame(windows, spacing, measured))
    return {name: pl.concat(parts) for name, parts in frames.items()}
