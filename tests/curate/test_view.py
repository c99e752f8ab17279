"""`curate view` over a real connection: who may ask, and that nothing a model wrote is ever more than text."""

import http.client
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from run_directories import small_run, write_rows

from curate import sql
from curate.view import queries
from curate.view.server import open_server
from pipelines import parquet
from pipelines.errors import UserError

HOSTILE = (
    '</pre><script>alert(1)</script><img src=x onerror=alert(1)><a href="javascript:alert(1)">x</a>'
    "\"'><svg/onload=alert(1)> {{ 7*7 }} {% raw %} \\href{javascript:alert(1)}{x} \u202e\x1b[31m"
)


@dataclass
class Site:
    """A running server and what it answers."""

    address: str
    prompt_ids: list[str]

    def get(self, path: str = "", method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        """Status, body and headers; `path` is below the address, or absolute where it starts with `/`."""
        at = urlsplit(self.address)
        connection = http.client.HTTPConnection(at.netloc, timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path if path.startswith("/") else at.path + path, headers=given)
            response = connection.getresponse()
            return (
                response.status,
                response.read().decode(),
                {name.lower(): value for name, value in response.headers.items()},
            )
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The small run, the first problem's text, answer, source and first trace being hostile."""
    run = small_run(tmp_path_factory.mktemp("view") / "out")
    prompts = parquet.read_table(run / "prompts/00000.parquet", "prompts").to_pylist()
    prompts[0] |= {"problem": HOSTILE, "answer": HOSTILE, "source": HOSTILE, "solution": HOSTILE, "choices": [HOSTILE]}
    rollouts = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()
    rollouts[0] |= {"reasoning": HOSTILE, "response": HOSTILE, "model": HOSTILE}
    rollouts[1] |= {"reasoning": "x" * 2_000_000}
    verdicts = parquet.read_table(run / "verdicts/00000.parquet", "verdicts").to_pylist()
    verdicts[0] |= {"extracted": HOSTILE, "rule": HOSTILE}
    write_rows(run, "prompts", prompts)
    write_rows(run, "rollouts", rollouts)
    write_rows(run, "verdicts", verdicts)
    with sql.tables(run) as connection:
        server, listener, address = open_server(connection, "<out>", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Site(address, [row["prompt_id"] for row in prompts])
        finally:
            server.should_exit = True
            thread.join()
            listener.close()


class Elements(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def assert_harmless(page: str) -> None:
    elements = Elements(page)
    assert not elements.tags & {"script", "img", "iframe", "object", "embed", "style", "base", "math"}
    for name, value in elements.attributes:
        assert not name.startswith("on"), name
        assert name != "style"
        assert name not in ("href", "src", "action") or value.startswith(("/", "?")), value
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|49 \{%", page)


def test_the_list_and_a_problem_are_shown(site: Site):
    status, page, _ = site.get()
    assert status == 200
    assert "6 problems" in page
    assert "What is $1 + 2$?" in page
    status, page, _ = site.get(f"problem/{site.prompt_ids[1]}")
    assert status == 200
    assert page.count("<article>") == 4
    assert page.count("<details>") == 4
    assert "<mark>3</mark>" in page
    assert "boxed:exact_number · mathematics@1" in page
    assert "midtrain ✕ duplicate" in page


def test_what_a_model_wrote_is_text(site: Site):
    for path in ("", f"problem/{site.prompt_ids[0]}"):
        status, page, _ = site.get(path)
        assert status == 200
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert_harmless(page)


def test_filter_values_come_back_escaped_and_never_as_sql(site: Site):
    for value in ("%22%3E%3Cscript%3Ealert(1)%3C/script%3E", "%27%20OR%201=1%20--", "%00", "%F0%9F%98%80"):
        for name in ("text", "source", "verdict", "choice", "page"):
            status, page, _ = site.get(f"?{name}={value}")
            assert status == 200, (name, value)
            assert_harmless(page)
            assert name == "page" or "0 problems" in page


def test_filters(site: Site):
    def shown(query: str) -> set[int]:
        page = site.get(f"?{query}")[1]
        return {site.prompt_ids.index(found) for found in re.findall(r"problem/([0-9a-f]{24})", page)}

    assert shown("") == {0, 1, 2, 3, 4, 5}
    assert shown("source=additions") == {1, 3, 5}
    assert shown("verdict=correct") == {0, 1, 2, 5}
    assert shown("verdict=no_answer&source=sums") == set()
    assert shown("choice=dpo:chosen") == {1, 2}
    assert shown("choice=sft:contaminated") == {5}
    assert shown("text=is+%243+%2B") == {3}
    assert shown("page=2") == set()


def test_rollouts_of_one_verdict(site: Site):
    page = site.get(f"problem/{site.prompt_ids[2]}?verdict=incorrect")[1]
    assert page.count("<article>") == 2


def test_a_long_line_is_cut_and_said_to_be(site: Site):
    page = site.get(f"problem/{site.prompt_ids[0]}")[1]
    assert "Cut for display: the trace has 2,000,0" in page
    assert len(page) < 3 * queries.MOST_CHARS


def test_an_unknown_problem_is_not_found(site: Site):
    assert site.get("problem/nothing")[0] == 404
    assert site.get("problem/../../etc/passwd")[0] == 404


def test_without_the_token_nothing_is_answered(site: Site):
    token = urlsplit(site.address).path.strip("/")
    assert len(token) >= 32
    for path in (
        "/",
        f"/problem/{site.prompt_ids[0]}",
        "/style.css",
        f"/{token[:-1]}/",
        f"/{token}x/",
        "//",
        "/?token=x",
    ):
        status, page, headers = site.get(path)
        assert status == 403, path
        assert "problem" not in page
        assert headers["content-security-policy"]


def test_another_host_or_origin_is_refused(site: Site):
    at = urlsplit(site.address).netloc
    assert site.get(Host="evil.example")[0] == 403
    assert site.get(Host="127.0.0.1:1")[0] == 403
    assert site.get(Origin="http://evil.example")[0] == 403
    assert site.get(Origin="null")[0] == 403
    assert site.get(Sec_Fetch_Site="cross-site")[0] == 403
    assert site.get(Origin=f"http://{at}")[0] == 200
    assert site.get(Host=at.replace("127.0.0.1", "localhost"))[0] == 200
    assert site.get(Sec_Fetch_Site="same-origin")[0] == 200


def test_the_page_only_reads(site: Site):
    for method in ("POST", "PUT", "DELETE"):
        assert site.get(method=method)[0] == 405


def test_no_script_is_allowed_and_nothing_comes_from_elsewhere(site: Site):
    _, page, headers = site.get()
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "http://" not in page.replace(site.address, "")
    assert "https://" not in page
    status, style, headers = site.get("style.css")
    assert status == 200
    assert headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style


def test_it_listens_on_loopback_only(site: Site):
    assert urlsplit(site.address).hostname == "127.0.0.1"


def test_a_taken_port_is_said(site: Site):
    with pytest.raises(UserError, match="cannot listen on port"):
        open_server(None, "out", urlsplit(site.address).port)  # type: ignore[arg-type]


def test_an_empty_directory_is_shown(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with sql.tables(tmp_path / "out") as connection:
        assert queries.listing(connection, queries.Filter()).total == 0
        assert queries.facets(connection) == {"sources": [], "verdicts": [], "choices": []}
