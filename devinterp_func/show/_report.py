"""A run's whole report: every topic's sections in order, and which scripts would add what is not there yet."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from devinterp_func import records
from devinterp_func.records import Run, RunPath
from devinterp_func.show import (
    _bigram_sections,
    _credit_sections,
    _direction_sections,
    _influence_sections,
    _judge_sections,
    _lifetime_sections,
    _neuron_sections,
    _norm_sections,
    _outlier_sections,
    _phase_sections,
    _retrain_sections,
    _run_sections,
    _split_sections,
    _summary,
    page,
    results,
)
from devinterp_func.show.page import Section, counted

POST = "https://www.lesswrong.com/posts/DtkA5jysFZGv7W4qP/training-process-transparency-through-gradient"
TOPICS = (  # each has ``sections(run, folder)``; in the order of the page
    _run_sections,
    _split_sections,
    _credit_sections,
    _lifetime_sections,
    _influence_sections,
    _retrain_sections,
    _neuron_sections,
    _bigram_sections,
    _outlier_sections,
    _norm_sections,
    _direction_sections,
    _phase_sections,
    _judge_sections,
)
OF_ANY_DATA = (_run_sections, _split_sections, _outlier_sections, _judge_sections)
SUMMARY = "What the tables say, each number beside its control. The sections have the rest."
NO_TEXT = """The data of this run are tensors, no text. Notable tokens, flips, bigrams, ledgers by token, heads, norms,
directions and phases are told in words, which these data do not have; the library's functions take any data."""
SCRIPTS = {  # stage, also its script's name -> what it adds to the page
    "attribute": "which weights each datum moved most, and the neurons and tokens these point at",
    "ablate": "which predictions flip when these neurons are ablated, beside controls",
    "skill": "how well each ranking of tokens predicts these flips",
    "activations": "what activations alone would have shown",
    "bigram": "when bigrams are learnt, and which texts moved the bigram decoder",
    "ledger": "which data raised and which lowered a probe",
    "lifetime": "what data did beyond their own steps, through the optimizer's memory",
    "influence": "what the end would have been without each text, and how far that can be said",
    "heads": "what attention heads come to attend to",
    "counterfactual": "how far a credit can be trusted",
    "norms": "which tokens built the neurons",
    "directions": "the directions in which units grew",
    "phases": "whether training has phases",
    "retrain": "what training would have been without the data credited most",
    "judge": "which amounts foretell what a datum changed, held against retraining",
}


def report(run: RunPath, folder: Path | None = None, links: page.Links | None = None) -> str:
    """A run's whole page as HTML; what has no results yet is left out, and named at the end.

    Args:
        run: the run, or its directory.
        folder: its results; by default beside it.
        links: where names lead that pages beside this one tell of, (kind, value) -> address: ("neuron", name),
            ("datum", id), ("step", t), ("token", id), ("head", "0.1"), ("probe", name). None: no such page; a neuron
            leads to its card then.

    Raises:
        RecordError: there is no such run.
        ValueError: a table is damaged or of another version; the message names the script to run.
    """
    opened = records.open(run)
    folder = results.beside(opened) if folder is None else folder
    notes = [page.note(text) for text in _outdated(opened, folder)]
    sections, absent = [], _not_run(opened, folder)
    for topic in TOPICS if opened.is_text else OF_ANY_DATA:
        try:
            sections += topic.sections(opened, folder)
        except results.Missing as error:  # a part of a topic's results
            absent.append((str(error), ""))
    found = _summary.findings(opened, folder)
    if found:
        sections.insert(0, Section("Summary", SUMMARY, [page.findings(found)]))
    if notes:
        sections.insert(
            1 + bool(found), Section("Out of date", "Some results do not follow from what is here now.", notes)
        )
    if not opened.is_text:
        sections.append(Section("What is left out", NO_TEXT))
    if absent:
        sections.append(_not_here(opened, absent))
    return page.page("How this model came to be", _subtitle(opened), sections, links, numbered=True)


def _subtitle(run: Run) -> str:
    made_of = f"{run.manifest['model']['name']}, {run.dataset.name}, {counted(run.n_steps, 'step')}"
    post = f"[Training Process Transparency through Gradient Interpretability]({POST})"
    return f"`{run.path.name}`: {made_of} of {counted(run.recipe.batch_size, 'datum', 'data')}. The post: {post}."


def _outdated(run: Run, folder: Path) -> Iterator[str]:
    for stage, reason in results.outdated(folder, run).items():
        yield f"`{stage}` {reason}; to make it again: `{results.command(stage, run)}`"


def _not_run(run: Run, folder: Path) -> list[tuple[str, str]]:
    able = SCRIPTS if run.is_text else {"attribute": "which weights each datum moved most"}
    return [(f"{stage}.py", adds) for stage, adds in able.items() if not any(folder.glob(f"{stage}*.json"))]


def _not_here(run: Run, absent: list[tuple[str, str]]) -> Section:
    lead = f"Each script adds what stands beside it: `{results.command('SCRIPT', run)}`."
    frame = pl.DataFrame(absent, {"script": pl.String, "adds": pl.String}, orient="row")
    return Section("What is not here", lead, [page.table(frame, fold=None)])
