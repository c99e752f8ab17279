"""The pages: a list of problems, a problem with its rollouts, its pairs, and the form that marks them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

import duckdb
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from curate import overrides
from curate.view import queries
from curate.view.difference import difference
from curate.view.filters import Filter
from curate.view.index import Index
from pipelines.errors import UserError

_HERE = Path(__file__).parent
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".woff2": "font/woff2"}
_FORM_BYTES = 16 << 10


def application(index: Index, title: str, base: str) -> Starlette:
    """The pages below `base`: the list, `problem/ID`, `problem/ID/pairs`, `mark` (a form), `assets/`."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(title=title, base=base, said=overrides.SAID, note_chars=overrides.NOTE_CHARS)

    def page(name: str, status: int = 200, **values: object) -> Response:
        return HTMLResponse(templates.get_template(name).render(**values), status_code=status)

    def changed(_: Request, __: Exception) -> Response:
        text = "The tables are not those that this page was started on: start `curate view` again."
        return page("message.html", 503, text=text)

    routes = [
        Route(base, partial(_list, index, page)),
        Route(f"{base}problem/{{prompt_id}}", partial(_problem, index, page)),
        Route(f"{base}problem/{{prompt_id}}/pairs", partial(_pairs, index, page)),
        Route(f"{base}mark", partial(_mark, index, page, base), methods=["POST"]),
        *(Route(f"{base}assets/{name}", _asset(path)) for name, path in _assets().items()),
    ]
    return Starlette(routes=routes, exception_handlers={duckdb.Error: changed, queries.TablesChangedError: changed})


Page = Callable[..., Response]


def _list(index: Index, page: Page, request: Request) -> Response:
    chosen = Filter.parse(request.query_params)
    return page("list.html", chosen=chosen, found=queries.listing(index, chosen), facets=index.facets)


def _problem(index: Index, page: Page, request: Request) -> Response:
    found = queries.problem(index, request.path_params["prompt_id"])
    if found is None:
        return page("message.html", 404, text="No problem of this id.")
    chosen = Filter.parse(request.query_params)
    rollouts = queries.rollouts(index, found["place"], found["prompt_id"], chosen)
    return page(
        "problem.html",
        problem=found,
        rollouts=rollouts,
        chosen=chosen,
        neighbours=queries.neighbours(index, chosen, found["place"]),
        last=_pages(rollouts.total, queries.ROLLOUTS_A_PAGE),
        marks=queries.marks(index),
    )


def _pairs(index: Index, page: Page, request: Request) -> Response:
    found = queries.problem(index, request.path_params["prompt_id"])
    if found is None:
        return page("message.html", 404, text="No problem of this id.")
    chosen = Filter.parse(request.query_params)
    shown = [
        {
            "sides": sides,
            **{part: difference(*(side[part] or "" for side in sides)) for part in ("reasoning", "response")},
        }
        for sides in queries.pairs(index, found["place"], found["prompt_id"], chosen.page)
    ]
    last = _pages(found["num_pairs"], queries.PAIRS_A_PAGE)
    return page("pairs.html", problem=found, pairs=shown, chosen=chosen, last=last)


def _pages(rows: int, a_page: int) -> int:
    return max(1, -(-rows // a_page))


# --- marking --------------------------------------------------------------------------------------


async def _mark(index: Index, page: Page, base: str, request: Request) -> Response:
    """Store a mark, or take it back, and show the problem again."""
    form = await _form(request)
    if form is None:
        return page("message.html", 400, text="This form is not the page's own.")
    return await run_in_threadpool(_marked, index, page, base, form)


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None if it is none, or too long."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return None
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _FORM_BYTES:
            return None
    return {name: values[0].strip() for name, values in parse_qs(body.decode("utf-8", "replace")).items()}


def _marked(index: Index, page: Page, base: str, form: Mapping[str, str]) -> Response:
    prompt_id, rollout_id = form.get("prompt_id", ""), form.get("rollout_id")
    if not queries.is_known(index, prompt_id, rollout_id):
        return page("message.html", 404, text="No problem or rollout of this id.")
    # A reference answer is marked where the problem is.
    kind, id_, root = ("gold", prompt_id, index.home) if rollout_id is None else ("verdict", rollout_id, index.root)
    try:
        if form.get("action") == "unmark":
            overrides.unmark(root, kind, id_)
        else:
            said = form.get("verdict") if kind == "verdict" else None
            note = form.get("note", "")[: overrides.NOTE_CHARS] or None
            overrides.mark(root, overrides.Override(kind, id_, prompt_id, said, note))
    except (UserError, OSError) as error:
        return page("message.html", 409, text=f"Not marked: {error}.")
    back = Filter.parse({name: values[0] for name, values in parse_qs(form.get("back", "").lstrip("?")).items()})
    address = f"{base}problem/{prompt_id}{back.address(page=back.page, every=back.every)}"
    return RedirectResponse(address + (f"#r-{rollout_id}" if rollout_id else ""), status_code=303)


# --- assets ---------------------------------------------------------------------------------------


def _assets() -> dict[str, Path]:
    """The files that the pages may ask for, by name below `assets/`; nothing else is ever read."""
    folder = _HERE / "assets"
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.suffix in _MEDIA}


def _asset(path: Path) -> Callable[[Request], Response]:
    content, media = path.read_bytes(), _MEDIA[path.suffix]
    return lambda _: Response(content, media_type=media, headers={"Cache-Control": "private, max-age=3600"})
