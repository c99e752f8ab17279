"""The page's server: on the loopback interface only, and only for who holds the token in its address.

What models wrote is shown, never run: the page has no script, its policy forbids any, and every
value passes through an escaping template. Other sites in the same browser cannot reach it: their
requests carry another `Host`, `Origin` or `Sec-Fetch-Site`, and none has the token.
"""

import secrets
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate import sql
from curate.view import queries
from pipelines.errors import UserError

_HERE = Path(__file__).parent

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(root: Path, port: int, on_ready: Callable[[str], object]) -> None:
    """Serve `root` until interrupted. `on_ready` hears the address once; port 0 takes a free one."""
    with sql.tables(root) as connection:
        server, listener, address = open_server(connection, str(root), port)
        with listener:
            on_ready(address)
            server.run(sockets=[listener])


def open_server(
    connection: duckdb.DuckDBPyConnection, title: str, port: int
) -> tuple[uvicorn.Server, socket.socket, str]:
    """A server, the socket it listens on, and the address with its token."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # the address works from the moment it is told
    except OSError as error:
        listener.close()
        raise UserError(f"cannot listen on port {port}: {error.strerror}", hint="choose another --port") from None
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    app = _guarded(application(connection, title, f"/{token}/"), token, port)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    return uvicorn.Server(config), listener, f"http://127.0.0.1:{port}/{token}/"


def application(connection: duckdb.DuckDBPyConnection, title: str, base: str) -> Starlette:
    """The pages: `BASE` lists problems, `BASE/problem/ID` shows one."""
    templates = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = partial(templates.get_template("page.html").render, title=title, base=base)
    style = (_HERE / "style.css").read_text(encoding="utf-8")

    def listing(request: Request) -> Response:
        chosen = queries.Filter.parse(request.query_params)
        found = queries.listing(connection, chosen)
        last = max(1, -(-found.total // queries.PROBLEMS_A_PAGE))
        return HTMLResponse(page(kind="list", chosen=chosen, found=found, last=last, facets=queries.facets(connection)))

    def problem(request: Request) -> Response:
        found = queries.problem(connection, request.path_params["prompt_id"])
        if found is None:
            return HTMLResponse(page(kind="absent"), status_code=404)
        chosen = queries.Filter.parse(request.query_params)
        shown = found["verdicts"].get(chosen.verdict, 0) if chosen.verdict else found["num_rollouts"]
        last = max(1, -(-shown // queries.ROLLOUTS_A_PAGE))
        rollouts = queries.rollouts(connection, found["prompt_id"], chosen.verdict, chosen.page)
        return HTMLResponse(page(kind="problem", problem=found, rollouts=rollouts, chosen=chosen, last=last))

    def stylesheet(request: Request) -> Response:  # noqa: ARG001
        return Response(style, media_type="text/css")

    routes = [
        Route(base, listing),
        Route(f"{base}problem/{{prompt_id}}", problem),
        Route(f"{base}style.css", stylesheet),
    ]
    return Starlette(routes=routes)


def _guarded(app: ASGIApp, token: str, port: int) -> ASGIApp:
    """`app` behind the checks of every request, with the headers of every response."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        refusal = _refusal(scope, token, hosts)
        answer = app if refusal is None else PlainTextResponse(f"{refusal}\n", status_code=403)
        await answer(scope, receive, send_with_headers)

    return guard


def _refusal(scope: Scope, token: str, hosts: set[str]) -> str | None:
    """Why a request is refused; None where it is not."""
    if scope["type"] != "http":
        return "HTTP only"
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get("host") not in hosts:
        return "wrong Host"
    origin = headers.get("origin")
    if origin is not None and origin.removeprefix("http://") not in hosts:
        return "wrong Origin"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "asked for by another site"
    given = scope["path"].split("/")[1]
    if not secrets.compare_digest(given.encode(), token.encode()):
        return "no or wrong token: open the address that `curate view` printed"
    return None
