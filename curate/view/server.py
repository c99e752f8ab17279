"""The page's server: on the loopback interface only, and only for who holds the token in its address.

What models wrote is shown, never run: every value passes through an escaping template, the policy allows
no script but the two files that ship with the package, and these make text nodes, never markup.
Other sites in the same browser cannot reach it: their requests carry another `Host`, `Origin` or
`Sec-Fetch-Site`, and none has the token.
"""

import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from curate.view import index
from curate.view.pages import application
from pipelines.errors import UserError

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: a form would then be sent with the origin `null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(root: Path, port: int, on_ready: Callable[[str], object], *, home: Path | None = None) -> None:
    """Serve `root` until interrupted; its problems are in `home` where it has none. Port 0 takes a free one.

    `on_ready` hears the address once.
    """
    with index.opened(root, home) as opened:
        server, listener, address = open_server(opened, str(root), port)
        with listener:
            on_ready(address)
            server.run(sockets=[listener])


def open_server(opened: index.Index, title: str, port: int) -> tuple[uvicorn.Server, socket.socket, str]:
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
    app = _guarded(application(opened, title, f"/{token}/"), token, port)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    return uvicorn.Server(config), listener, f"http://127.0.0.1:{port}/{token}/"


def _guarded(app: ASGIApp, token: str, port: int) -> ASGIApp:
    """`app` behind the checks of every request, with the headers of every response."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                headers = [header for header in headers if header[0] not in given]
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
    if origin is None and scope["method"] not in ("GET", "HEAD"):
        return "no Origin: only the page itself can change anything"
    if origin is not None and origin != f"http://{headers['host']}":
        return "wrong Origin"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "asked for by another site"
    _, _, below = scope["path"].partition("/")
    if not secrets.compare_digest(below.partition("/")[0].encode(), token.encode()):
        return "no or wrong token: open the address that `curate view` printed"
    return None
