"""`curate view` over a real connection: who may ask, and that nothing a model wrote is ever more than text."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from run_directories import small_run, write_rows
from view_site import FORM, Site, served

from curate import overrides
from curate.view import index, queries
from curate.view.difference import difference
from curate.view.filters import Filter
from curate.view.server import open_server
from pipelines import parquet
from pipelines.errors import UserError

HOSTILE = (
    '</pre><script>alert(1)</script><img src=x onerror=alert(1)><a href="javascript:alert(1)">x</a>'
    "\"'><svg/onload=alert(1)> {{ 7*7 }} {% raw %} \\href{javascript:alert(1)}{x} \u202e\x1b[31m"
)


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
    with served(run) as site:
        yield site


class Elements(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.scripts = 0
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "script":
            self.scripts += "src" in dict(attrs)
            assert dict(attrs)["src"].split("/assets/")[1] in ("katex/katex.min.js", "page.js")
        self.attributes += [(name, value or "") for name, value in attrs]


def assert_harmless(page: str) -> None:
    elements = Elements(page)
    assert not elements.tags & {"img", "iframe", "object", "embed", "style", "base", "math"}
    assert elements.scripts == 2  # both ours, by their address
    for name, value in elements.attributes:
        assert not name.startswith("on"), name
        assert name != "style"
        assert name not in ("href", "src", "action") or value.startswith(("/", "#")), value
    assert "49" not in re.findall(r"\{\{ 7\*7 \}\}|49 \{%", page)


def test_the_list_and_a_problem_are_shown(site: Site):
    status, page, _ = site.get()
    assert status == 200
    assert "6 problems" in page
    assert "What is $1 + 2$?" in page
    status, page, _ = site.get(f"problem/{site.prompt_ids[1]}")
    assert status == 200
    assert page.count("<article ") == 4
    assert page.count('<details class="reasoning">') == 4
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
        for name in (
            "text",
            "source",
            "domain",
            "level",
            "verdict",
            "rule",
            "model",
            "choice",
            "step",
            "after",
            "page",
        ):
            status, page, _ = site.get(f"?{name}={value}")
            assert status == 200, (name, value)
            assert_harmless(page)
            assert ("0 problems" in page) == (name not in ("step", "after", "page"))


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
    assert shown("domain=arithmetic&level=elementary") == {0, 2, 4}
    assert shown("rule=boxed:unequal") == {1, 2, 3, 4}
    assert shown("model=teacher-7b") == {0, 1, 2, 3, 4, 5}
    assert shown("min_tokens=100&max_tokens=115") == {3, 4, 5}
    # One rollout must pass all of it: the wrong ones of problem 3 are its first three.
    assert shown("verdict=incorrect&min_tokens=90") == {3, 4}
    assert shown("verdict=incorrect&min_tokens=95") == {4}
    assert shown(f"text={site.prompt_ids[4]}") == {4}
    assert shown(f"text={site.rollout_ids[9]}") == {2}
    assert shown("after=4") | shown("before=3") == {0, 1, 2, 3, 4, 5} - shown("after=2") | shown("after=4")
    assert shown("min_tokens=soon") == {0, 1, 2, 3, 4, 5}


def test_rollouts_of_one_verdict(site: Site):
    page = site.get(f"problem/{site.prompt_ids[2]}?verdict=incorrect")[1]
    assert page.count("<article ") == 2
    assert "2 of 4 rollouts pass the filter" in page
    page = site.get(f"problem/{site.prompt_ids[2]}?verdict=incorrect&every=1")[1]
    assert page.count("<article ") == 4


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
        "/assets/style.css",
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


def test_only_the_page_itself_can_mark(site: Site):
    at = urlsplit(site.address)
    own = {"Origin": f"http://{at.netloc}", "Content_Type": FORM}
    body = urlencode({"prompt_id": site.prompt_ids[1], "rollout_id": site.rollout_ids[4], "verdict": "correct"})
    for path, headers, status in (
        ("mark", {"Content_Type": FORM}, 403),  # no browser sends a form without its origin
        ("mark", {**own, "Origin": "null"}, 403),
        ("mark", {**own, "Origin": "http://evil.example"}, 403),
        ("mark", {**own, "Origin": f"http://localhost:{at.port}"}, 403),
        ("mark", {**own, "Host": f"evil.example:{at.port}"}, 403),
        ("mark", {**own, "Sec_Fetch_Site": "same-site"}, 403),
        ("/mark", own, 403),
        ("/wrong/mark", own, 403),
        ("mark", {**own, "Content_Type": "application/json"}, 400),
        ("", own, 405),
    ):
        assert site.get(path, "POST", body, **headers)[0] == status, (path, headers)
    assert site.get("mark", "POST", body + "&note=" + "x" * 20_000, **own)[0] == 400
    assert site.get("mark", **own)[0] == 405
    for method in ("PUT", "DELETE"):
        assert site.get("", method, **own)[0] == 405
    assert site.mark(prompt_id=site.prompt_ids[1], rollout_id="0" * 24, verdict="correct")[0] == 404
    assert site.mark(prompt_id=site.prompt_ids[0], rollout_id=site.rollout_ids[4], verdict="correct")[0] == 404
    assert site.mark(prompt_id=site.prompt_ids[1], rollout_id=site.rollout_ids[4], verdict="perfect")[0] == 409
    assert not overrides.read(site.run)


def test_no_script_but_ours_is_allowed_and_nothing_comes_from_elsewhere(site: Site):
    _, page, headers = site.get()
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert "http://" not in page.replace(site.address, "")
    assert "https://" not in page
    status, style, headers = site.get("assets/style.css")
    assert status == 200
    assert headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style


def test_assets_ship_and_nothing_else_is_read(site: Site):
    _, style, _ = site.get("assets/katex/katex.min.css")
    fonts = set(re.findall(r"url\((fonts/[^)]*woff2)\)", style))
    assert len(fonts) == 20
    for name in ("page.js", "katex/katex.min.js", *(f"katex/{font}" for font in fonts)):
        status, _, headers = site.get(f"assets/{name}")
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
    assert "https://" not in site.get("assets/page.js")[1]
    for name in ("katex/LICENSE", "../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "/etc/passwd", ""):
        assert site.get(f"assets/{name}")[0] == 404, name


def test_it_listens_on_loopback_only(site: Site):
    assert urlsplit(site.address).hostname == "127.0.0.1"


def test_a_taken_port_is_said(site: Site):
    with pytest.raises(UserError, match="cannot listen on port"):
        open_server(None, "out", urlsplit(site.address).port)  # type: ignore[arg-type]


def test_an_empty_directory_is_shown(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with index.opened(tmp_path / "out") as opened:
        assert queries.listing(opened, Filter()) == queries.Listing([], 0, 0)
        assert not any(opened.facets.values())


def test_pages_follow_each_other_without_gap_or_repeat(tmp_path: Path):
    run = small_run(tmp_path / "out", problems=95)
    with index.opened(run) as opened:
        chosen, seen, firsts = Filter(source="sums"), [], []
        page = queries.listing(opened, chosen)
        while page.problems:
            seen += [row["place"] for row in page.problems]
            firsts.append(page.first)
            page = queries.listing(opened, Filter(source="sums", after=seen[-1]))
        assert firsts == [0, 40]
        assert len(seen) == len(set(seen)) == 48
        assert seen == sorted(seen)
        back = queries.listing(opened, Filter(source="sums", before=seen[40]))
        assert ([row["place"] for row in back.problems], back.first) == (seen[:40], 0)
        before, after = queries.neighbours(opened, chosen, seen[1])
        places = {row["prompt_id"]: row["place"] for row in back.problems}
        assert (places[before], places[after]) == (seen[0], seen[2])  # type: ignore[index]
        assert queries.neighbours(opened, chosen, seen[0])[0] is None


def test_a_pair_is_shown_as_what_differs(site: Site):
    status, page, _ = site.get(f"problem/{site.prompt_ids[2]}/pairs")
    assert status == 200
    assert "1 DPO pair;" in page
    assert page.index("Chosen") < page.index("Rejected")
    assert '<mark class="left">5</mark>}$' in page
    assert '<mark class="right">6</mark>}$' in page
    assert "0 DPO pairs" in site.get(f"problem/{site.prompt_ids[0]}/pairs")[1]
    assert_harmless(page)


def test_rollouts_of_rl_are_shown_by_step_with_the_problems_of_another_directory(tmp_path: Path):
    out = small_run(tmp_path / "out", problems=2)
    steps = [
        row | {"step": k % 4 // 2, "rollout_id": f"{k:024}"}
        for k, row in enumerate(parquet.read_table(out / "rollouts/00000.parquet", "rollouts").to_pylist())
    ]
    verdicts = parquet.read_table(out / "verdicts/00000.parquet", "verdicts").to_pylist()
    for row, rollout in zip(verdicts, steps, strict=True):
        row["rollout_id"] = rollout["rollout_id"]
    write_rows(tmp_path / "rl", "rollouts", steps)
    write_rows(tmp_path / "rl", "verdicts", verdicts)
    reward = {"reward": 1.0, "advantage": 0.5, "group_refusal": "too_easy", "logprob": -1.0}
    rewards = [{"rollout_id": row["rollout_id"], "prompt_id": row["prompt_id"], "step": row["step"]} for row in steps]
    write_rows(tmp_path / "rl", "rewards", [row | reward for row in rewards])
    problem = steps[4]["prompt_id"]
    with served(tmp_path / "rl") as site:
        assert "2 problems" in site.get()[1]
        assert "name the one that holds it" in site.get(f"problem/{problem}")[1]
    with served(tmp_path / "rl", out) as site:
        page = site.get()[1]
        assert "step 0: 3 of 4 correct" in page
        assert "What is $1 + 2$?" in page
        page = site.get(f"problem/{problem}")[1]
        assert re.findall(r"Step (\d) .*?(\d of \d correct)", page) == [
            ("0", "1 of 2 correct"),
            ("1", "1 of 2 correct"),
        ]
        assert page.count("· reward 1 · advantage +0.50") == page.count("not trained on: too easy") == 4
        page = site.get(f"problem/{problem}?step=1")[1]
        assert page.count("<article ") == 2
        # A reference answer is marked where the problem is, a verdict where the rollout is.
        site.mark(prompt_id=problem)
        site.mark(prompt_id=problem, rollout_id=steps[4]["rollout_id"], verdict="correct")
    assert set(overrides.read(out)) == {("gold", problem)}
    assert set(overrides.read(tmp_path / "rl")) == {("verdict", steps[4]["rollout_id"])}


def test_tables_that_changed_under_the_page_are_said(tmp_path: Path):
    run = small_run(tmp_path / "out")
    with served(run) as site:
        rollouts = parquet.read_table(run / "rollouts/00000.parquet", "rollouts").to_pylist()
        write_rows(run, "rollouts", rollouts[1:])
        for _ in range(2):
            status, page, _ = site.get(f"problem/{site.prompt_ids[0]}")
            assert status == 503
            assert "start `curate view` again" in page
            (run / "rollouts/00000.parquet").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("left", "right", "pieces"),
    [
        ("", "", []),
        ("One. Two.", "One. Two.", [(True, "One. Two.", "One. Two.")]),
        ("It is 2. Yes.", "It is 3. Yes.", [(True, "It is ", "It is "), (False, "2", "3"), (True, ". Yes.", ". Yes.")]),
        ("Right.", "", [(False, "Right.", "")]),
    ],
)  # fmt: skip
def test_difference(left: str, right: str, pieces: list[tuple[bool, str, str]]):
    assert [(piece.same, piece.left, piece.right) for piece in difference(left, right)] == pieces


def test_difference_loses_nothing_of_long_texts():
    left, right = "a. b. " * 30_000, "b. a! " * 30_000
    pieces = difference(left, right)
    assert "".join(piece.left for piece in pieces) == left
    assert "".join(piece.right for piece in pieces) == right
