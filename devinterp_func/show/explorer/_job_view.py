"""A job's page: how far it is, what it printed, and a button that ends it or starts it again."""

import shlex

from markupsafe import Markup

from devinterp_func.show import page
from devinterp_func.show.explorer._job_forms import FORMS
from devinterp_func.show.explorer._job_panels import WORDS, buttons
from devinterp_func.show.explorer._jobs import Job, Jobs
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, NotThere, Panel, Query, View

AFTER = {"replay": ("step", "step"), "ledger": ("probes", None), "retrain": ("probes", None)}


def view(site: Site, id: str, query: Query, links: Links) -> View:
    """One job, as it is now."""
    if site.jobs is None:
        raise NotThere("this server starts no commands", [("jobs", "jobs", None)])
    number = int(id) if id.isascii() and id.isdigit() and len(id) < 9 and str(int(id)) == id else 0
    try:
        job = site.jobs.get(number)
    except LookupError:
        near: list[tuple[str, str, object]] = [(f"job {j.number}", "job", j.number) for j in site.jobs.all[-3:]]
        raise NotThere(f"there is no job {id!r}", [*near, ("all jobs", "jobs", None)]) from None
    before = links("job", job.number - 1) if job.number > 1 else None
    after = links("job", job.number + 1) if job.number < len(site.jobs.all) else None
    told = f"Job {job.number} {WORDS[job.state]}."
    panels = [_state(site, site.jobs, job, links), _command(job)]
    return View(FORMS[job.kind].title, panels, told, before, after, lively=not job.over)


def _state(site: Site, jobs: Jobs, job: Job, links: Links) -> Panel:
    """How far it is and what it printed: script keeps both up to date while it runs."""
    facts: dict[str, object] = {"state": WORDS[job.state]}
    if job.state == "waiting":
        ahead = [other for other in jobs.all if not other.over and other.number < job.number]
        facts["before it"] = page.counted(len(ahead), "job")
    if job.status:
        facts["exit status"] = job.status
    live = Markup("") if job.over else Markup(' data-events="{}"').format(f"{links.root}job/{job.number}/events")
    drawn = Markup(
        '<div class="running"{}>{}<p class="doing" role="status">{}</p>'
        '<pre class="said" tabindex="0" aria-label="what it printed">{}</pre></div>'
    ).format(live, *_progress(jobs, job), (Markup("… ") if job.cut else Markup("")) + job.said)
    items = [page.facts(facts), drawn, *buttons(site, job, links)]
    if job.state == "done":
        kind, field = AFTER[job.kind]
        found = links(kind, None if field is None else job.values[field])
        items.append(Markup('<p><a href="{}">What it found</a></p>').format(found))
    return Panel("How far it is", "", items)


def _progress(jobs: Jobs, job: Job) -> tuple[Markup, str]:
    """A bar and what is being done."""
    told = jobs.progress(job)
    if told is None or told.total < 1:
        return Markup("" if job.over else '<progress aria-label="progress"></progress>'), ""
    bar = Markup('<progress aria-label="progress" max="{}" value="{}"></progress>').format(told.total, told.done)
    return bar, f"{told.doing}: {told.done:,} of {told.total:,}"


def _command(job: Job) -> Panel:
    line = shlex.join(job.command)
    told = "The same at a terminal. It goes on where it stopped."
    return Panel("Its command", told, [Markup('<pre tabindex="0"><code>{}</code></pre>').format(line)])
