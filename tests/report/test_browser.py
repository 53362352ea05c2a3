"""The page in a real browser: nothing of a trace runs, nothing is loaded, and every button works.

Needs the package playwright and a system Chromium (tools/browser.py installs Debian's); skipped
without them. All tests share one browser and one warehouse.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import pytest

from curate.report import live, serve
from curate.warehouse import Warehouse
from tests.report.conftest import HOSTILE
from tests.report.test_report import page
from tests.report.test_watch import finish

pytestmark = pytest.mark.slow

CHROMIUM = next(
    (
        browser
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (browser := shutil.which(name))
    ),
    None,
)
PLAIN = 14  # problems with four plain traces each
STRANGER = 'o\'wner/<b>"none"\\ \u202e 中'  # a model whose name needs every kind of quoting


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium here: tools/browser.py installs Debian's")
    with sync_api.sync_playwright() as play:
        yield play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def written(chromium, made_once, tmp_path_factory):
    """A warehouse with hostile and plain traces, and its page."""
    wh = Warehouse(shutil.copytree(made_once, tmp_path_factory.mktemp("browser") / "wh"))
    family = "e" * 24
    problems = [
        {"problem_id": f"q{i}", "question": f"Say {i}.", "reference": str(i), "verifier": "math"}
        for i in range(PLAIN)
    ]
    traces = [
        {
            "trace_id": f"e{i * 4 + sample:031d}",
            "attempt": 0,
            "job_id": family,
            "problem_id": f"q{i}",
            "sample_index": sample,
            "recipe": "import",
            "form": "plain",
            "template": "plain@0",
            "model": STRANGER,
            "prompt": f"Say {i}.",
            "completion": f"It is {i}, sample {sample} of the four.\nThat is all.",
            "answer": f"It is {i}, sample {sample} of the four.\nThat is all.",
            "finish_reason": "stop",
            "completion_tokens": 100 + i * 4 + sample,
        }
        for i in range(PLAIN)
        for sample in range(4)
    ]
    wh.write("problems", "plain", problems, key=5)
    wh.write("traces", family, traces, key=6)
    # every hostile trace is in some set: the first one shows at most four of a problem
    shown = {"all": "TRUE", **{f"text {i}": f"sample_index = {i}" for i in range(len(HOSTILE))}}
    page(wh, title="</title><script>window.pwned = 0</script>", where=shown)
    return wh


class Opened:
    """A page of the browser, with what it requested and what went wrong in it."""

    def __init__(self, chromium, address: str, **options) -> None:
        self.view = chromium.new_page(**{"color_scheme": "light", **options})
        self.view.set_default_timeout(60_000)
        self.requested: list[str] = []
        self.errors: list[str] = []
        self.view.on("request", lambda request: self.requested.append(request.url))
        self.view.on("pageerror", lambda error: self.errors.append(str(error)))
        self.view.on("console", lambda line: self.errors.append(line.text))
        self.view.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))
        self.view.goto(address)

    def __getattr__(self, name: str):
        return getattr(self.view, name)

    def ids(self) -> list[str]:
        return self.view.eval_on_selector_all(
            "#list li[data-trace]", "x => x.map(i => i.dataset.trace)"
        )


@pytest.fixture
def opening(chromium, written):
    """Opens the page, at a fragment if one is given."""
    pages = []

    def opened(fragment: str = "", **options) -> Opened:
        pages.append(Opened(chromium, f"file://{written.root}/report.html{fragment}", **options))
        return pages[-1]

    yield opened
    for one in pages:
        assert one.errors == []
        assert [url for url in one.requested if not url.startswith(("file:", "blob:"))] == []
        one.view.close()


def curate(*arguments: object) -> str:
    command = [sys.executable, "-m", "curate.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_a_trace_runs_whatever_is_opened(opening):
    opened = opening()
    opened_traces = 0
    for label in opened.locator("#set option").all_inner_texts():
        if not label.startswith("text"):
            continue
        opened.locator("#set").select_option(label=label)
        for button in opened.locator("#list button").all():
            button.click()
            opened.locator("#pane-a").evaluate(
                "pane => pane.querySelectorAll('details').forEach(d => d.open = true)"
            )
            opened_traces += 1
        if opened.locator("select.beside option").count() > 1:
            opened.locator("select.beside").select_option(index=1)
            opened.locator(".to-diff").click()
        opened.locator("#export").click()
        assert opened.locator("#pane-diff :is(script, img, iframe, svg)").count() == 0
    assert opened_traces >= 2 * len(HOSTILE)
    assert opened.evaluate("window.pwned === undefined && window.parent.pwned === undefined")
    assert opened.locator("#pane-a :is(script, img, iframe, svg)").count() == 0


def test_markup_from_a_text_is_refused_by_the_page_itself(opening):
    opened = opening()
    refused = opened.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }"
    )
    assert refused
    opened.errors.clear()  # the browser reports what it refused


def test_traces_are_sorted_and_narrowed_by_their_columns(opening, written):
    opened = opening()
    assert opened.locator("#shown").inner_text() == f"{8 + 4 * PLAIN} shown"
    assert len(opened.ids()) == 50
    assert opened.locator("#page").inner_text() == "page 1 of 2"
    opened.locator("#next").click()
    assert len(opened.ids()) == 8 + 4 * PLAIN - 50
    opened.locator("#sort").select_option("completion_tokens")
    opened.locator("#direction").click()
    assert opened.ids()[0] == f"e{PLAIN * 4 - 1:031d}"
    opened.locator("#signal").select_option("completion_tokens")
    opened.locator(".limit input").nth(0).fill("110")
    opened.locator(".limit input").nth(1).fill("119")
    assert opened.ids() == [f"e{i:031d}" for i in range(19, 9, -1)]
    opened.locator("#problem").select_option("q3")
    assert opened.ids() == [f"e{i:031d}" for i in range(15, 11, -1)]
    opened.locator("#clear").click()
    opened.locator("#verdict").select_option("correct")
    correct = written.sql("SELECT trace_id FROM annotated WHERE verdict = 'correct'")["trace_id"]
    assert opened.ids()
    assert set(opened.ids()) <= set(correct)
    opened.locator("#recipe").select_option("import")
    assert opened.ids() == []  # no verifier judged the plain ones


def test_an_address_opens_the_same_selection_again(opening):
    opened = opening()
    opened.locator("#recipe").select_option("import")
    opened.locator("#sort").select_option("completion_tokens")
    opened.locator("#signal").select_option("completion_tokens")
    opened.locator(".limit input").nth(0).fill("140")
    opened.locator("#list button").nth(2).click()
    opened.locator("select.beside").select_option(index=1)
    opened.locator(".to-diff").click()
    fragment = opened.evaluate("location.hash")
    again = opening(fragment)
    assert again.ids() == opened.ids()
    assert again.locator("#pane-diff").inner_text() == opened.locator("#pane-diff").inner_text()
    assert again.locator(".limit input").nth(0).input_value() == "140"
    again.go_back()
    strange = opening("#recipe=other&trace=%3Cscript%3E&sort=quality&limit=x:1:2")
    assert "left out: recipe other, trace <script>, limit x:1:2" in (
        strange.locator("#message").inner_text()
    )
    assert strange.locator("#sort").input_value() == "quality"


def test_back_returns_to_the_trace_before(opening):
    opened = opening()
    for at in (0, 1):
        opened.locator("#list button").nth(at).click()
    opened.go_back()
    assert opened.locator("#pane-a h4").inner_text() == opened.ids()[0]


def test_differences_of_two_traces_are_marked(opening):
    one, other = f"e{4:031d}", f"e{6:031d}"  # samples 0 and 2 of one problem
    opened = opening(f"#trace={one}&beside={other}&diff=1")
    pane = opened.locator("#pane-diff")
    assert pane.locator(".diff").inner_text() == "It is 1, sample 02 of the four.\nThat is all."
    assert pane.locator(".diff del").all_inner_texts() == ["0"]
    assert pane.locator(".diff ins").all_inner_texts() == ["2"]
    assert "completion tokens\t104\t106" in pane.locator("table").inner_text()


def test_the_selection_is_exported_as_ids_and_as_rules_that_filter_accepts(
    opening, written, tmp_path
):
    opened = opening()
    opened.locator("#model").select_option(STRANGER)
    opened.locator("#signal").select_option("completion_tokens")
    opened.locator(".limit input").nth(0).fill("130.5")
    opened.locator("#export").click()
    ids = opened.locator("#exported").input_value().split()
    assert sorted(ids) == sorted(opened.ids())
    assert len(ids) == 4 * PLAIN - 31
    for kind, corpus in (("traces", "these"), ("conditions", "all")):
        opened.locator("#as").select_option(kind)
        opened.locator("#export").click()
        with opened.expect_download() as download:
            opened.locator("#export-save").click()
        rules = tmp_path / f"{kind}.yaml"
        download.value.save_as(rules)
        curate("filter", rules, f"corpus={corpus}", "-w", written.root)
        kept = written.sql(f"SELECT trace_id FROM corpora WHERE corpus = '{corpus}'")["trace_id"]
        assert sorted(kept) == sorted(ids)


def test_what_no_rule_can_say_is_not_exported_as_conditions(opening):
    opened = opening()
    opened.locator("#as").select_option("conditions")
    opened.locator("#set").select_option("kept by cold")
    opened.locator("#export").click()
    assert "is more than a condition" in opened.locator("#export-note").inner_text()
    assert opened.locator("#exported").input_value() == ""
    opened.locator("#clear").click()
    opened.locator("#search").fill("sample 2 of")
    opened.locator("#export").click()
    assert "A search for text has no rule" in opened.locator("#export-note").inner_text()


def test_ids_and_links_are_copied(chromium, opening):
    opened = opening()
    opened.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    opened.locator("#list button").first.click()
    opened.get_by_text("copy id").click()
    assert opened.evaluate("window.copied") == opened.ids()[0]
    opened.get_by_text("copy link").click()
    again = Opened(chromium, opened.evaluate("window.copied"))
    assert again.locator("#pane-a h4").inner_text() == opened.ids()[0]
    again.view.close()


def test_a_narrow_screen_does_not_scroll_sideways(opening):
    opened = opening(viewport={"width": 390, "height": 800})
    opened.locator("#list button").first.click()
    opened.locator("select.beside").select_option(index=1)
    wide = "document.documentElement.scrollWidth"
    assert opened.evaluate(wide) <= 390
    opened.locator(".to-diff").click()
    opened.locator("#as").select_option("traces")
    opened.locator("#export").click()
    opened.locator("#signal").select_option("quality")
    assert opened.evaluate(wide) <= 390
    assert opened.locator("#pipeline .origin").is_visible()
    code = opened.locator("#funnel td code").first.bounding_box()
    assert code["x"] + code["width"] <= 390
    assert code["width"] > 100


def test_two_traces_side_by_side_search_and_themes(opening):
    opened = opening()
    opened.locator("#list button").first.click()
    beside = opened.locator("select.beside")
    assert beside.locator("option").count() > 1
    beside.select_option(index=1)
    a, b = (opened.locator(f"#pane-{x} article h4").inner_text() for x in "ab")
    assert a[0] == b[0]  # of one problem
    assert a != b
    opened.locator("#search").fill(HOSTILE[0])
    shown = opened.locator("#list button").count()
    assert opened.locator("#shown").inner_text() == f"{shown} shown"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(paper)
    opened.locator("#theme").click()
    assert opened.evaluate(paper) != light
    opened.emulate_media(color_scheme="dark")
    opened.locator("#theme").click()
    assert opened.evaluate(paper) == light  # what was chosen counts above what the system prefers


def test_formulas_are_drawn_and_marks_are_there(opening):
    opened = opening()
    opened.locator("#set").select_option(f"text {len(HOSTILE) - 1}")
    opened.locator("#sort").select_option("completion_tokens")
    opened.locator("#list button", has_text="r1-zero").first.click()
    pane = opened.locator("#pane-a")
    assert pane.locator("math mfrac").count() > 0
    box = pane.locator("math mfrac").first.bounding_box()
    assert box["height"] > box["width"]  # a fraction stands upright
    assert pane.locator("mark.foreign").all_inner_texts() == [
        "我们",
        "然后",
    ]  # the question is English


# -- the live page --------------------------------------------------------------------------------


@pytest.fixture
def watched(chromium, written, monkeypatch):
    """The live page of the same warehouse, and its server."""
    monkeypatch.setattr(live, "SECONDS", 0.2)
    monkeypatch.setattr(live, "REST", 0.0)
    server = serve.Server(live.Live(written.root, traces=100), 0)
    server.live.page()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = []

    def opened(**options) -> Opened:
        pages.append(Opened(chromium, server.url, **options))
        return pages[-1]

    yield opened, server
    for one in pages:
        one.view.close()
        assert [e for e in one.errors if "ERR_CONNECTION_REFUSED" not in e] == []
        assert {url.split("?")[0] for url in one.requested} == {server.url}
    if server.fileno() != -1:
        server.shutdown()
        server.server_close()


def test_the_live_page_takes_over_what_jobs_write(watched, written):
    opened = watched[0]()
    opened.locator("#recipe").select_option("r1-zero")
    opened.locator("#list button").first.click()
    chosen = opened.locator("#pane-a h4").inner_text()
    opened.locator("#pane-a details").first.evaluate("details => { details.open = true }")
    before = opened.ids()
    row = {"attempt": 0, "problem_id": "p0", "sample_index": 77, "recipe": "r1-zero"}
    row |= {
        "form": "plain",
        "finish_reason": "stop",
        "completion": HOSTILE[0],
        "trace_id": "7" * 32,
    }
    written.write("traces", "7" * 24, [row], key=77)
    finish(written, 3, HOSTILE[1])
    opened.locator(f"#list [data-trace='{'7' * 32}']").wait_for()
    opened.locator(".work").wait_for()
    assert set(opened.ids()) == {*before, "7" * 32}  # the filter stays
    assert opened.locator("#pane-a h4").inner_text() == chosen
    assert opened.locator("#pane-a details").first.get_attribute("open") is not None
    assert "3 of 16 samples" in opened.locator("#now").inner_text()
    assert HOSTILE[1] in opened.locator("#now").inner_text()
    opened.locator(f"[data-trace='{'7' * 32}'] button").click()
    assert opened.locator("#pane-a :is(script, img, iframe, svg)").count() == 0
    assert opened.locator("#now :is(script, img, iframe)").count() == 0
    assert opened.evaluate("window.pwned === undefined")


def test_the_live_page_fits_a_narrow_screen_and_says_when_its_server_ends(watched):
    opening, server = watched
    opened = opening(viewport={"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.locator("#pause").click()
    assert opened.locator("#live").inner_text() == "paused"
    opened.locator("#pause").click()
    server.shutdown()
    server.server_close()
    opened.get_by_text("not updated").wait_for()
    assert opened.ids()  # what was there stays readable
