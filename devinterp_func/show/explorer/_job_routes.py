"""What a server takes that changes something: jobs are started and cancelled by POST, with this process's token."""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from devinterp_func.show.explorer import _pages
from devinterp_func.show.explorer._job_forms import checked, forms, suggested
from devinterp_func.show.explorer._job_panels import form_panel, listed
from devinterp_func.show.explorer._jobs import Full, Job, Jobs
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import View

LARGEST = 65_536  # bytes of a form
FIELDS = 50  # of a form
EVERY = 0.25  # seconds from one look at a job to the next
KIND = "application/x-www-form-urlencoded"


class Refused(Exception):
    """A form that is not taken; with the status of the answer."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def routes_of(site: Site, jobs: Jobs, drawing: threading.Lock) -> list[Route]:
    """The routes of jobs.

    Args:
        site: with these jobs.
        jobs: the queue.
        drawing: held while a page is made.
    """

    def found(request: Request) -> Job:
        try:
            return jobs.get(int(request.path_params["number"]))
        except LookupError as error:
            raise Refused(404, str(error)) from None

    async def start(request: Request) -> Response:
        try:
            values = await posted(request, jobs.token)
            return await run_in_threadpool(_started, site, jobs, values, drawing)
        except Refused as refused:
            return PlainTextResponse(str(refused), refused.status)

    async def cancel(request: Request) -> Response:
        try:
            await posted(request, jobs.token)
            job = found(request)
        except Refused as refused:
            return PlainTextResponse(str(refused), refused.status)
        jobs.cancel(job)
        return RedirectResponse(f"/job/{job.number}.html", 303)

    async def events(request: Request) -> Response:
        try:
            job = found(request)
        except Refused as refused:
            return PlainTextResponse(str(refused), refused.status)
        limit = request.query_params.get("limit", "")
        most = int(limit) if limit.isdecimal() and len(limit) < 9 else None
        last = request.headers.get("last-event-id", "")
        told = int(last) if last.isdecimal() and len(last) < 18 else 0
        return StreamingResponse(_events(request, jobs, job, told, most), media_type="text/event-stream")

    return [
        Route("/jobs/start", start, methods=["POST"]),
        Route("/job/{number:int}/cancel", cancel, methods=["POST"]),
        Route("/job/{number:int}/events", events, methods=["GET"]),
    ]


async def posted(request: Request, token: str) -> dict[str, str]:
    """The fields of a form that carries the token; several values of one field are lines of one.

    Raises:
        Refused: it is too large, no form, or has not the token.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != KIND:
        raise Refused(415, f"a form is {KIND}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise Refused(413, f"a form has at most {LARGEST:,} bytes")
    try:
        fields = parse_qs(body.decode("latin-1"), keep_blank_values=True, errors="replace", max_num_fields=FIELDS)
    except ValueError:
        raise Refused(413, f"a form has at most {FIELDS} fields") from None
    values = {name: "\n".join(parts) for name, parts in fields.items()}
    if not secrets.compare_digest(values.pop("token", "").encode("utf-8", "replace"), token.encode()):
        raise Refused(403, "the form is not of this server's pages, or of an earlier one's: open the page again")
    return values


def _started(site: Site, jobs: Jobs, values: dict[str, str], drawing: threading.Lock) -> Response:
    """Starts a job whose values are right; else the page that says what is wrong, with the form as it was filled."""
    kind = values.get("job", "")
    if kind not in forms(site):
        raise Refused(404, f"this server starts no job {kind!r}")
    with drawing:
        tried = checked(site, kind, values)
        if tried.wrong:
            address = "jobs.html"
            links = _pages.links_of(address)
            panels = [form_panel(site, kind, suggested(site, kind, values), links, tried=tried), listed(site, links)]
            page = _pages.html(site, View("Jobs", panels, "Nothing was started."), address)
            return HTMLResponse(page, 422)
    try:
        job = jobs.start(kind, tried.values)
    except Full as error:
        raise Refused(429, str(error)) from None
    return RedirectResponse(f"/job/{job.number}.html", 303)


async def _events(request: Request, jobs: Jobs, job: Job, told: int, most: int | None) -> AsyncIterator[str]:
    """How a job goes on, until it is over: each event's id is how many characters were told of what it printed."""
    sent, last = 0, dict[str, object]()
    while most is None or sent < most:
        over, state, said, cut = job.over, job.state, job.said, job.cut
        progress = jobs.progress(job)
        new = said[max(0, told - cut) :]
        about: dict[str, object] = {"state": state} | ({} if progress is None else progress._asdict())
        if new or about != last or over:
            last = about
            told = cut + len(said)
            yield f"id: {told}\nevent: {'over' if over else 'job'}\ndata: {json.dumps(about | {'said': new})}\n\n"
            sent += 1
        if over or await request.is_disconnected():
            return
        await asyncio.sleep(EVERY)
