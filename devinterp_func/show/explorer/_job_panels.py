"""Panels of jobs: a form that asks, what it will cost with a button that starts it, a list."""

from collections.abc import Mapping

import polars as pl
from markupsafe import Markup

from devinterp_func.show import page
from devinterp_func.show.explorer._job_costs import cost, said
from devinterp_func.show.explorer._job_forms import FORMS, Checked, Field, checked, suggested
from devinterp_func.show.explorer._jobs import Job, Jobs
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import Links, Panel, Query

INPUT = '<input name="{name}" value="{value}" inputmode="numeric" autocomplete="off"{wrong}>'
AREA = '<textarea name="{name}" rows="2" cols="40" autocomplete="off" spellcheck="false"{wrong}>{value}</textarea>'
WORDS = {
    "waiting": "waits for those before it",
    "running": "is running",
    "stopping": "is being cancelled",
    "done": "is done",
    "failed": "failed",
    "cancelled": "was cancelled",
}


def form_panel(
    site: Site, kind: str, query: Query, links: Links, title: str = "", tried: Checked | None = None
) -> Panel:
    """A form that asks for a job's values; it leads to the page that says what they cost.

    Args:
        site: with jobs.
        kind: of the form.
        query: values to fill in.
        links: of the page.
        title: in place of the form's.
        tried: what was wrong with these values.
    """
    form, values = FORMS[kind], suggested(site, kind, query)
    wrong = {} if tried is None else tried.wrong
    fields = Markup("").join(_field(kind, field, values[field.name], wrong.get(field.name)) for field in form.fields)
    drawn = Markup(
        '<form class="job" method="get" action="{}"><input type="hidden" name="job" value="{}">{}'
        "<p><button>Say what it costs</button></p></form>"
    ).format(links("jobs"), kind, fields)
    return Panel(title or form.title, form.about, [drawn])


def _field(kind: str, field: Field, value: str, wrong: str | None) -> Markup:
    """A labelled input, and below it what is wrong or what it takes."""
    mark = Markup(' aria-invalid="true" aria-describedby="{}"').format(f"{kind}-{field.name}") if wrong else Markup("")
    box = Markup(AREA if field.many else INPUT).format(name=field.name, value=value, wrong=mark)
    below = Markup("")
    if wrong:
        below = Markup('<span class="wrong" role="alert" id="{}">{}</span>').format(f"{kind}-{field.name}", wrong)
    elif field.help:
        below = Markup('<span class="help">{}</span>').format(field.help)
    return Markup("<div><label>{} {}</label>{}</div>").format(field.label, box, below)


def asked(site: Site, kind: str, query: Query, links: Links) -> list[Panel]:
    """The form with the values that are asked for, and what they cost; or what is wrong with them."""
    values = suggested(site, kind, query)
    tried = checked(site, kind, values)
    form = form_panel(site, kind, query, links, tried=tried)
    return [form] if tried.wrong else [_price(site, kind, values, tried, links), form._replace(title="Other values")]


def _price(site: Site, kind: str, values: Mapping[str, str], tried: Checked, links: Links) -> Panel:
    """What the job takes, and the button that starts it."""
    jobs, price = _of(site), cost(site, kind, tried.values)
    shown = ", ".join(f"{name} {_told(value)}" for name, value in tried.values.items())
    facts: dict[str, object] = {"plain steps": (f"about {price.steps:,.0f}", "of training, in time")}
    seconds = jobs.step_seconds()
    if isinstance(seconds, float):
        facts["time"] = (f"about {said(seconds * price.steps)}", f"a step takes {seconds:.2g} s here")
    else:
        told = "a step is being timed; ask again in a moment" if seconds is None else seconds
        facts["time"] = ("not known", told)
    if price.n_bytes is not None:
        facts["on the disk"] = (f"about {page.n_bytes(price.n_bytes)}", "in the results' folder")
    waiting = sum(not job.over for job in jobs.all)
    facts["before it"] = page.counted(waiting, "job")
    button = _post(jobs, links, "jobs/start", "Start", {"job": kind, **values})
    return Panel(f"{FORMS[kind].title}: {shown}", FORMS[kind].about, [page.facts(facts), button])


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _post(jobs: Jobs, links: Links, to: str, text: str, values: Mapping[str, object]) -> Markup:
    """A button that changes something."""
    hidden = Markup("").join(
        Markup('<input type="hidden" name="{}" value="{}">').format(name, value)
        for name, value in {"token": jobs.token, **values}.items()
    )
    return Markup('<form class="act" method="post" action="{}">{}<button>{}</button></form>').format(
        links.root + to, hidden, text
    )


def listed(site: Site, links: Links) -> Panel:
    """All jobs of this server, the newest first."""
    jobs = _of(site)
    rows = [(job.number, FORMS[job.kind].title, _values(job), WORDS[job.state]) for job in reversed(jobs.all)]
    frame = pl.DataFrame(rows, {"job": pl.Int64, "what": pl.String, "of": pl.String, "state": pl.String}, orient="row")
    items = [page.table(frame, fold=None)]
    if rows:
        items.append(page.links([links.a(f"Job {row[0]}: {row[1]}, {row[2]}", "job", row[0]) for row in rows]))
    return Panel("Jobs of this server", "One runs at a time; the others wait in their order.", items)


def _values(job: Job) -> str:
    return "; ".join(f"{name} {_told(value)}" for name, value in job.values.items())


def buttons(site: Site, job: Job, links: Links) -> list[Markup]:
    """What can be done with a job."""
    if not job.over:
        return [_post(_of(site), links, f"job/{job.number}/cancel", "Cancel", {})]
    values = {name: "\n".join(map(str, v)) if isinstance(v, tuple) else v for name, v in job.values.items()}
    return [_post(_of(site), links, "jobs/start", "Start it again", {"job": job.kind, **values})]


def _of(site: Site) -> Jobs:
    assert site.jobs is not None
    return site.jobs
