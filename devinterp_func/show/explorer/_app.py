"""The server: pages of a site on this machine alone. GET never changes anything."""

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from uvicorn import Config, Server

from devinterp_func.show.explorer import _pages
from devinterp_func.show.explorer._job_costs import step_seconds
from devinterp_func.show.explorer._job_routes import routes_of
from devinterp_func.show.explorer._jobs import PATIENCE, Command, Jobs
from devinterp_func.show.explorer._search import search
from devinterp_func.show.explorer._site import Site
from devinterp_func.show.explorer._types import NotThere

SUGGESTED = 4  # of a kind, under the search box
HOSTS = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src-elem 'self'; style-src-attr 'unsafe-inline'; img-src 'self' "
    "data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form's own origin would not be told
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Answer = Callable[[Request], Awaitable[Response]]


def app(site: Site, commands: Mapping[str, Command] | None = None, patience: float | int = PATIENCE) -> Starlette:
    """The pages of a site as an ASGI application.

    Args:
        site: of ``open``.
        commands: kind of job -> its command from the checked values of its form; without any no job can be started.
        patience: seconds that a cancelled job has to end by itself.
    """
    drawing = threading.Lock()  # matplotlib is not for several threads
    if commands:
        site = replace(site, jobs=Jobs(commands, patience, partial(step_seconds, site.run)))

    def page(request: Request) -> Response:
        address = request.path_params["address"]
        query = {name: "\n".join(request.query_params.getlist(name)) for name in request.query_params}
        with drawing:
            try:
                view = _pages.make(site, address, query)
                return HTMLResponse(_pages.html(site, view, address))
            except NotThere as error:
                return HTMLResponse(_pages.missing(site, error, address), 404)

    def found(request: Request) -> Response:
        hits = search(site, request.query_params.get("q", ""), SUGGESTED)
        return JSONResponse([[hit.text, hit.address, hit.group] for hit in hits])

    routes = [
        Route("/search.json", found),
        Route("/", lambda request: RedirectResponse("/run.html")),
        Route("/static/explorer.css", lambda request: Response(_pages.style(), media_type="text/css")),
        Route("/static/explorer.js", lambda request: Response(_pages.script(), media_type="text/javascript")),
        *(routes_of(site, site.jobs, drawing) if site.jobs is not None else ()),
        Route("/{address:path}", page),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        if site.jobs is not None:
            await run_in_threadpool(site.jobs.close)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=_guarded)]
    made = Starlette(routes=routes, middleware=middleware, lifespan=lifespan)
    made.state.jobs = site.jobs
    return made


async def _guarded(request: Request, answer: Answer) -> Response:
    """Answers only those who asked this machine by its own name, and from its own pages."""
    host = request.headers.get("host", "")
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return PlainTextResponse("this server answers on the loopback address alone", 421, HEADERS)
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign or request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
        if request.method != "GET" or foreign or request.headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("asked from another origin", 403, HEADERS)
    answered = await answer(request)
    answered.headers.update(HEADERS)
    return answered


def serve(
    site: Site,
    port: int = 8000,
    commands: Mapping[str, Command] | None = None,
    ready: Callable[[], object] | None = None,
) -> None:
    """Answers on 127.0.0.1 until it is interrupted; jobs that run then are ended, and can be started again.

    Args:
        site: of ``open``.
        port: of the loopback address.
        commands: of ``app``.
        ready: is called once the port is taken.

    Raises:
        ValueError: there is no such port.
        OSError: another program has it.
    """
    if not 0 < port < 2**16:
        raise ValueError(f"the port is {port}; it must be one of 1 to {2**16 - 1}")
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise OSError(f"port {port} of 127.0.0.1 cannot be had: {error.strerror}; choose another") from error
    with listening:
        if ready is not None:
            ready()
        config = Config(app(site, commands), log_level="warning", timeout_graceful_shutdown=2)
        Server(config).run(sockets=[listening])
