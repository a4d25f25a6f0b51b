"""Opening a run: everything about it is read and checked once.

This is the only place where a run's text is built again and where the process's threads are set to the run's.
"""

from dataclasses import replace
from pathlib import Path

import torch

from devinterp_func.models import Model
from devinterp_func.records._card import make_reproducible
from devinterp_func.records._dataset import unpack_data
from devinterp_func.records._described import MADE_BY, read_recipe, read_recording
from devinterp_func.records._directory import n_steps
from devinterp_func.records._machine import is_missing
from devinterp_func.records._manifest import RunPath, manifest
from devinterp_func.records._run import Run
from devinterp_func.records._sealed import RecordError
from devinterp_func.records._store import read_data


def open(run: RunPath, *, model: Model | None = None, anywhere: bool = False) -> Run:
    """Opens a run directory: everything about it is read and checked once.

    Sets torch's number of threads to the run's, which its bits depend on, and of a run on CUDA torch's switches for
    deterministic kernels and for the precision of products.

    Args:
        run: the directory, or an opened run.
        model: what made it, where the manifest does not say enough to build it again: a module of your own.
        anywhere: let steps be replayed on another processor or with other versions, where their bits may differ.

    Raises:
        RecordError: there is no run, it is damaged or of another format, or nothing of it is recorded yet.
    """
    opened = run if isinstance(run, Run) else _read(run)
    if torch.get_num_threads() != opened.manifest["threads"]:
        torch.set_num_threads(opened.manifest["threads"])
    if not is_missing(opened.device):
        make_reproducible(opened.device, opened.manifest.get("card"))
    if model is not None and (
        lacking := [name for name in opened.shapes if model.shapes.get(name) != opened.shapes[name]]
    ):
        raise RecordError(f"{opened}: the model that was given has not the run's {', '.join(lacking)}")
    opened = opened if model is None else replace(opened, given=model)
    if anywhere and not opened.anywhere:
        return replace(opened, anywhere=True, device="cpu" if is_missing(opened.device) else opened.device)
    return opened


def _read(run: RunPath) -> Run:
    body = manifest(run)
    if lacking := MADE_BY - body.keys():
        raise RecordError(f"{run} is no training's run, as its manifest lacks {', '.join(sorted(lacking))}")
    if not n_steps(run):
        raise RecordError(f"{run} has no recorded steps yet; experiments/capture.py goes on with it")
    recipe, recording = read_recipe(body["recipe"]), read_recording(body["recording"])
    data = unpack_data(body["data"], read_data(run), recipe.context)
    shapes = {name: tuple(shape) for name, shape in body["units"]}
    return Run(Path(run), body, recipe, recording, data, shapes, body["device"])
