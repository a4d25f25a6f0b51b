"""A run in the browser: every neuron, datum, step, token, probe and head has a page of its own.

``build`` makes the index beside the run, ``open`` opens both, ``make`` and ``html`` give one page, ``app`` a server's
(with the extra ``explore``), ``export`` writes the same pages as files. Pages are pure functions of what is opened;
every panel has the lines that give its numbers at the REPL.
"""

from importlib import import_module
from typing import Any

from devinterp_func.show.explorer._attention import attention
from devinterp_func.show.explorer._compare_view import compared, losses, outliers_of_runs
from devinterp_func.show.explorer._export import Exported, export
from devinterp_func.show.explorer._head_courses import head_course, head_jumps, heads_in_order
from devinterp_func.show.explorer._jobs import Command, Job, Jobs, Values
from devinterp_func.show.explorer._ledgers import CreditedVisits, credited_visits
from devinterp_func.show.explorer._lines import given
from devinterp_func.show.explorer._neuron_model import flips
from devinterp_func.show.explorer._neuron_view import about, companions
from devinterp_func.show.explorer._neurons_view import Large, large_table, largest_neurons
from devinterp_func.show.explorer._pages import html, make
from devinterp_func.show.explorer._phase_tables import phase_table
from devinterp_func.show.explorer._phase_view import steps_amounts
from devinterp_func.show.explorer._probe_rows import ledgers, probe_rows, probes
from devinterp_func.show.explorer._run_view import effective, shares
from devinterp_func.show.explorer._search import Hit, search
from devinterp_func.show.explorer._site import Site, beside, build, index_bytes, open
from devinterp_func.show.explorer._step_view import amounts, law, moved
from devinterp_func.show.explorer._token_view import AtToken, at_token, next_to, occurrences
from devinterp_func.show.explorer._types import Links, NotThere, Panel, View, path
from devinterp_func.show.explorer._visits import Touched, Visits, positions, shifts, touched, visits
from devinterp_func.show.explorer._walks import Credited, Walk, credited, walks

__all__ = [
    "AtToken",
    "Command",
    "Credited",
    "CreditedVisits",
    "Exported",
    "Hit",
    "Job",
    "Jobs",
    "Large",
    "Links",
    "NotThere",
    "Panel",
    "Site",
    "Touched",
    "Values",
    "View",
    "Visits",
    "Walk",
    "about",
    "amounts",
    "app",
    "at_token",
    "attention",
    "beside",
    "build",
    "companions",
    "compared",
    "credited",
    "credited_visits",
    "effective",
    "export",
    "flips",
    "given",
    "head_course",
    "head_jumps",
    "heads_in_order",
    "html",
    "index_bytes",
    "large_table",
    "largest_neurons",
    "law",
    "ledgers",
    "losses",
    "make",
    "moved",
    "next_to",
    "occurrences",
    "open",
    "outliers_of_runs",
    "path",
    "phase_table",
    "positions",
    "probe_rows",
    "probes",
    "search",
    "serve",
    "shares",
    "shifts",
    "steps_amounts",
    "touched",
    "visits",
    "walks",
]


def __getattr__(name: str) -> Any:
    if name in ("app", "serve"):  # these alone need Starlette and uvicorn
        try:
            return getattr(import_module(f"{__name__}._app"), name)
        except ImportError as error:
            needs = 'pages are served by Starlette and uvicorn; pip install "devinterp_func[explore]"'
            raise ImportError(needs) from error
    raise AttributeError(f"devinterp_func.show.explorer has no part {name!r}; it has {', '.join(__all__)}")
