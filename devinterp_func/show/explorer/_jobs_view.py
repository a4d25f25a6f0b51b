"""All jobs of the server, and the forms that ask for new ones."""

from devinterp_func.show.explorer._job_forms import FORMS, forms
from devinterp_func.show.explorer._job_panels import asked, form_panel, listed
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View

TOLD = """Scripts that this server runs on the run, one at a time. Their results go beside the run, which is only read;
a job that was cancelled, or ended with the server, goes on where it stopped when it is started again."""
NONE = """This server starts no commands. `python experiments/explore.py` gives it some; the scripts in `experiments/`
do the same at a terminal."""


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """The queue, and a form of each kind; of one kind where the address asks for it, with what it costs."""
    if site.jobs is None:
        return View("Jobs", [Panel("None here", NONE)])
    known, kind = forms(site), query.get("job")
    if kind is None:
        return View("Jobs", [listed(site, links), *(form_panel(site, name, {}, links) for name in known)], TOLD)
    if kind not in known:
        near = [(form.title, "jobs", None) for name, form in FORMS.items() if name in known]
        raise NotThere(f"this server starts no job {kind!r}", near[:1])
    return View("Jobs", [*asked(site, kind, query, links), listed(site, links)], TOLD)
