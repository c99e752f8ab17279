# ruff: noqa: S603, T201
"""`curate view` in headless Chromium: what a reader does, what hostile text must not do, and pictures of the page.

    python scripts/shots.py OUT [--rl RL] [--pictures docs] [--chromium chromium]

OUT, a run directory after `build-dpo-pairs` (`make demo` leaves one in `demo/out`), is copied, not touched; RL is a
run directory of `train rl` on it (`demo/run/rl`). Each check is a line; the first that fails ends the script. Needs
Chromium and the `websockets` package.
"""

import argparse
import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pyarrow as pa
from websockets.sync.client import connect

from pipelines import parquet
from pipelines.tables import TABLES

_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-quic")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
_CURATE = Path(sys.executable).with_name("curate")

HOSTILE = (
    '</pre></textarea><script>window.harmed = 1</script><img src="http://127.0.0.1:9/x" onerror="window.harmed = 2">'
    '<a href="javascript:window.harmed = 3">a</a><svg/onload="window.harmed = 4">\u202e turned \u202c '
    "<style>body { display: none }</style><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>"
    r" $\href{javascript:window.harmed=5}{x}$ $\includegraphics{http://127.0.0.1:9/y}$ $\htmlStyle{color:red}{z}$"
    r" $\def\x{\x}\x$ $\def\a{\b\b}\def\b{\a\a}\a$ $\rule{9999em}{9999em}$ $\hspace{-9999em}over$ \boxed{\boxed{7}}"
    + f" ${'{' * 900}{'}' * 900}$ $"
    + r"\sqrt{" * 300
    + f"{'}' * 300}$ "
    + r"$\frac{1}{2}$ and $1 + 1 = 2$. "
)


class Browser:
    """A page in Chromium, over its debugging protocol."""

    def __init__(self, address: str) -> None:
        self._socket = connect(address, max_size=None, legacy=True)
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command; what happens meanwhile is kept in `events`."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of an expression of ours in the page; the page's own policy does not bind the debugger."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression holds."""
        until = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise SystemExit(f"waited {seconds:.0f} s for: {condition}")
            time.sleep(0.05)

    def open(self, address: str) -> None:
        """Go to an address and wait for the page and its mathematics."""
        self.ask("Page.navigate", url=address)
        self.settle(f"location.href === {json.dumps(address)}")

    def settle(self, arrived: str) -> None:
        """Wait until the page that `arrived` is true of is complete, and what is in sight is typeset."""
        self.wait(f"document.readyState === 'complete' && {arrived}")
        self.run("document.fonts.ready.then(() => new Promise((done) => setTimeout(done, 400)))")

    def press(self, key: str) -> None:
        """One key, as if typed."""
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
            )

    def shape(self, width: int, height: int, *, dark: bool) -> None:
        """Size of the window in CSS pixels, and which colours the reader prefers."""
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1.5, mobile=mobile)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """What is in sight, as PNG."""
        shot = self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))
        print(f"wrote {path}, {path.stat().st_size / 1e3:,.0f} KB")


@contextmanager
def opened_browser(chromium: str) -> Iterator[Browser]:
    """A browser with an empty profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *_FLAGS, *_QUIET, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                told = Path(profile, "DevToolsActivePort")
                while not (told.is_file() and told.read_text().count("\n")):
                    assert process.poll() is None, "Chromium did not start"
                    time.sleep(0.1)
                with urlopen(f"http://127.0.0.1:{told.read_text().split()[0]}/json") as answer:
                    pages = [page for page in json.load(answer) if page["type"] == "page"]
                yield Browser(pages[0]["webSocketDebuggerUrl"])
            finally:
                process.terminate()


@contextmanager
def served(work: Path, *arguments: str) -> Iterator[str]:
    """`curate view` with these arguments, run in `work`, and its address."""
    with subprocess.Popen([_CURATE, "view", *arguments], cwd=work, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split(" at ")[1].split()[0]
        finally:
            process.terminate()


def check(what: str, holds: object) -> None:
    """Say that something holds, or end."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        raise SystemExit(1)


# --- checks ---------------------------------------------------------------------------------------


def read_and_mark(browser: Browser, run: Path, address: str, into: Path | None) -> None:
    """Filter, open a problem, unfold, see mathematics, mark an override, and follow it into `curate verify`."""
    browser.open(address)
    everything = browser.run("document.querySelector('.count').textContent")
    browser.press("/")
    check("`/` goes to the search", browser.run("document.activeElement.name === 'text'"))
    browser.run("document.querySelector('[name=verdict]').value = 'incorrect'")
    browser.run("document.querySelector('.filters button').click()")
    browser.settle("location.search.includes('verdict=incorrect')")
    check("a filter narrows the list", browser.run("document.querySelector('.count').textContent") != everything)
    browser.run("document.activeElement.blur()")
    browser.press("j")
    browser.press("j")
    check(
        "`j` goes down the list",
        browser.run("document.activeElement.closest('li') === document.querySelectorAll('.problems li')[1]"),
    )
    browser.run("document.activeElement.click()")  # as Enter does
    browser.settle("location.pathname.includes('/problem/')")
    check("mathematics is rendered", browser.run("document.querySelectorAll('article .katex').length > 0"))
    check("the answer is marked", browser.run("document.querySelectorAll('.response mark').length > 0"))
    check("reasoning is folded", browser.run("document.querySelectorAll('details.reasoning[open]').length === 0"))
    browser.press("j")
    browser.press("o")
    check("`o` unfolds it", browser.run("document.querySelectorAll('details.reasoning[open]').length === 1"))
    browser.press("m")
    check("`m` shows what was written", browser.run("!document.querySelector('.katex')"))
    browser.press("m")
    rollout = browser.run("document.querySelector('article').id.slice(2)")
    browser.run("document.querySelector('article .mark summary').click()")
    browser.run("document.querySelector('article .mark [name=note]').value = 'for the tour'")
    browser.run("document.querySelector('article .mark button[value=undecided]').click()")
    browser.settle("location.hash.startsWith('#r-')")
    check(
        "a mark is shown",
        browser.run("document.querySelector('article .chip.marked').textContent.includes('a reader says undecided')"),
    )
    if into is not None:
        browser.shape(1000, 640, dark=False)
        browser.press("O")
        browser.settle("true")
        browser.picture(into / "tour-marked.png")
    subprocess.run([_CURATE, "verify", run], check=True, capture_output=True)
    rows = parquet.read_table(parquet.table_files(run, "verdicts"), "verdicts").to_pylist()
    found = next(row for row in rows if row["rollout_id"] == rollout)
    check("`curate verify` respects it", (found["verdict"], found["rule"]) == ("undecided", "override"))


def poison(run: Path) -> str:
    """Put hostile text into the first problem and its rollouts; returns its id."""
    problem = parquet.read_table(parquet.table_files(run, "rollouts"), "rollouts", ["prompt_id"])[0][0].as_py()
    longer = {1: "$x$ " + "a" * 2_000_000, 2: "$x_{1}$ \\boxed{" * 100_000}

    def changed(row: dict[str, Any], table: str) -> dict[str, Any]:
        if row["prompt_id"] != problem:
            return row
        if table == "prompts":
            return {**row, **dict.fromkeys(("problem", "answer", "source"), HOSTILE)}
        reasoning = longer.get(row["sample_index"], HOSTILE)
        return {**row, "reasoning": reasoning, "response": HOSTILE, "model": HOSTILE}

    for table in ("prompts", "rollouts"):
        rewrite(run, table, changed)
    return str(problem)


def suffer(browser: Browser, address: str, problem: str) -> None:
    """Open what is hostile, with everything unfolded: nothing runs, nothing is fetched, nothing hangs."""
    at = urlsplit(address)
    browser.events.clear()
    for path in ("", f"?text={problem}", f"problem/{problem}"):
        started = time.monotonic()
        browser.open(address + path)
        browser.press("O")
        for _ in range(12):
            browser.run("window.scrollBy(0, 2000)")
            browser.run("new Promise((done) => setTimeout(done, 50))")
        seconds = time.monotonic() - started
        check(f"`{path or 'list'}` stands and answers in {seconds:.1f} s", seconds < 30)
        check("- no script of the text has run", browser.run("window.harmed === undefined"))
        check("- the page is still the page", browser.run("location.href") == address + path)
        check(
            "- no element of the text exists",
            browser.run(
                "!document.querySelector(':is(main) :is(img, iframe, style, script, meta, a[href^=javascript])')"
            ),
        )
        # KaTeX sizes what it draws; nothing it draws leaves the box of its text.
        wide = "document.documentElement.scrollWidth <= innerWidth + 1"
        check("- nothing spills over", browser.run(wide))
    check(
        "formulas beside the hostile ones are rendered",
        browser.run("document.querySelectorAll('article .katex .frac-line').length > 0"),
    )
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    check(
        f"all {len(asked)} requests went to the page's server",
        all(urlsplit(url).netloc == at.netloc for url in asked if not url.startswith("data:")),
    )
    said = [
        event["params"]
        for event in browser.events
        if event["method"] in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown")
    ]
    check("no dialog, no exception", not said)


def refused(browser: Browser, address: str) -> None:
    """A page of another origin cannot read, frame or mark; the page's policy refuses a script of any other kind."""
    at = urlsplit(address)
    browser.open(address)
    inline = "const s = document.createElement('script'); s.text = 'window.harmed = 7'; document.body.append(s)"
    browser.run(f"(() => {{ try {{ {inline} }} catch {{}} }})()")
    check("an inline script does not run", browser.run("window.harmed === undefined"))
    # A page of no origin at all, as any other site's is to this one.
    browser.open("about:blank")
    answer = browser.run(f"fetch({json.dumps(address)}).then((r) => r.status, () => 'refused')")
    check("another origin cannot read the page", answer in ("refused", 403))
    browser.events.clear()
    given = "{method: 'POST', mode: 'no-cors', body: new URLSearchParams({prompt_id: 'x'})}"
    browser.run(f"fetch({json.dumps(address + 'mark')}, {given}).then(() => 'sent', () => 'refused')")
    browser.run("new Promise((done) => setTimeout(done, 300))")
    came = [event["params"] for event in browser.events if event["method"] == "Network.responseReceived"]
    check("another origin cannot mark", [answer["response"]["status"] for answer in came] in ([403], []))
    browser.open(f"http://{at.netloc}/")
    check("without the token nothing is shown", "no or wrong token" in browser.run("document.body.textContent"))


def by_step(browser: Browser, address: str, into: Path | None) -> None:
    """A run of RL: a bar opens its step, a problem shows its rollouts under their steps."""
    browser.shape(1200, 800, dark=True)
    browser.open(address)
    if into is not None:
        browser.picture(into / "view-rl-dark.png")
    browser.open(
        address + browser.run("document.querySelectorAll('.steps a')[3].getAttribute('href').split('/').pop()")
    )
    check(
        "a bar opens its step", browser.run("location.search === '?step=3' && document.querySelector('.here') !== null")
    )
    browser.run("document.querySelector('.problems a').click()")
    browser.settle("location.pathname.includes('/problem/')")
    check(
        "rollouts stand under their step",
        browser.run("document.querySelector('h2.step').textContent.startsWith('Step 3')"),
    )


# --- pictures -------------------------------------------------------------------------------------


_PROBLEM = r"Let $a_1 = 1$ and $a_{n+1} = a_n + \frac{1}{n(n+1)}$ for $n \ge 1$. Find \[ \lim_{n\to\infty} a_n. \]"
_RIGHT = (
    r"The steps telescope: \(\frac{1}{n(n+1)} = \frac{1}{n} - \frac{1}{n+1}\), so"
    "\n"
    r"$$a_n = 1 + \sum_{k=1}^{n-1}\left(\frac{1}{k} - \frac{1}{k+1}\right) = 2 - \frac{1}{n}.$$"
    "\nWait, let me check: $a_2 = 1 + \\frac{1}{2} = \\frac{3}{2} = 2 - \\frac{1}{2}$. Yes.",
    r"Since $a_n = 2 - \frac{1}{n}$, the limit is $\boxed{2}$.",
    "2",
)
_WRONG = (
    r"The sum of all steps is \(\sum_{k \ge 1} \frac{1}{k(k+1)} = 1\).",
    r"The series converges to $1$, hence $\lim a_n = \boxed{1}$.",
    "1",
)


def with_mathematics(run: Path) -> str:
    """Give a problem that has a pair more mathematics than the pocket world knows; returns its id."""
    problem = parquet.read_table(parquet.table_files(run, "shards/dpo"), "shards/dpo", ["prompt_id"])[0][0].as_py()
    labels = parquet.read_table(parquet.table_files(run, "verdicts"), "verdicts").to_pylist()
    right = {row["rollout_id"] for row in labels if row["verdict"] == "correct"}

    def changed(row: dict[str, Any], table: str) -> dict[str, Any]:
        if row["prompt_id"] != problem:
            return row
        if table == "prompts":
            return {**row, "problem": _PROBLEM, "answer": "2"}
        reasoning, response, extracted = _RIGHT if row["rollout_id"] in right else _WRONG
        own = {"reasoning": reasoning, "response": response, "extracted": extracted}
        return {name: own.get(name, value) for name, value in row.items()}

    for table in ("prompts", "rollouts", "verdicts"):
        rewrite(run, table, changed)
    return str(problem)


def rewrite(run: Path, table: str, changed: Callable[[dict[str, Any], str], dict[str, Any]]) -> None:
    """Every file of a table with its rows changed."""
    for path in parquet.table_files(run, table):
        rows = [changed(row, table) for row in parquet.read_table(path, table).to_pylist()]
        parquet.write_file(path, table, [pa.Table.from_pylist(rows, schema=TABLES[table])])


def pictures(browser: Browser, address: str, problem: str, into: Path) -> None:
    """The list, a problem and its pair, in light, dark and on a phone."""
    for path, name, dark, unfold in (
        ("?verdict=incorrect&max_tokens=60", "view-list-light.png", False, ""),
        (f"problem/{problem}", "view-problem-light.png", False, "O"),
        (f"problem/{problem}", "view-problem-dark.png", True, "O"),
        (f"problem/{problem}/pairs", "view-pair-light.png", False, ""),
    ):
        browser.shape(1200, 800, dark=dark)
        browser.open(address + path)
        browser.press(unfold) if unfold else None
        browser.settle("true")
        browser.picture(into / name)
    browser.shape(390, 844, dark=False)
    browser.open(f"{address}problem/{problem}")
    browser.picture(into / "view-phone.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="run directory")
    parser.add_argument("--rl", type=Path, help="run directory of `train rl` on it")
    parser.add_argument("--pictures", type=Path, help="folder for PNG pictures")
    parser.add_argument("--chromium", default="chromium")
    options = parser.parse_args()
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, opened_browser(options.chromium) as browser:
        work = Path(folder)
        run = work / "out"
        shutil.copytree(options.out, run, ignore=shutil.ignore_patterns(".executor"))
        browser.shape(1200, 800, dark=False)
        with served(work, "out") as address:
            read_and_mark(browser, run, address, options.pictures)
            refused(browser, address)
        if options.pictures is not None:
            problem = with_mathematics(run)
            with served(work, "out") as address:
                pictures(browser, address, problem, options.pictures)
        if options.rl is not None:
            shutil.copytree(options.rl, work / "rl", ignore=shutil.ignore_patterns("final", "step-*"))
            with served(work, "rl", "--prompts", "out") as address:
                by_step(browser, address, options.pictures)
        problem = poison(run)
        with served(work, "out") as address:
            for width, height, dark in ((1200, 800, False), (390, 844, True)):
                browser.shape(width, height, dark=dark)
                suffer(browser, address, problem)


if __name__ == "__main__":
    main()
