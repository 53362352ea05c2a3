"""The page in a real browser: nothing of a trace runs, nothing is loaded, and every button works.

Needs the package playwright and a system Chromium (tools/browser.py installs Debian's); skipped
without them.
"""

from __future__ import annotations

import shutil

import pytest

from tests.report.conftest import HOSTILE
from tests.report.test_report import page

CHROMIUM = next(
    (
        browser
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (browser := shutil.which(name))
    ),
    None,
)


@pytest.fixture
def opened(hostile):
    """(page, requested addresses) of the report over the hostile warehouse."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium here: tools/browser.py installs Debian's")
    # every hostile trace is in some set: the first one shows at most four of a problem
    shown = {"all": "TRUE", **{f"text {i}": f"sample_index = {i}" for i in range(len(HOSTILE))}}
    page(hostile, title="</title><script>window.pwned = 0</script>", where=shown)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(color_scheme="light")
        view.requested, view.errors = [], []
        view.on("request", lambda request: view.requested.append(request.url))
        view.on("pageerror", lambda error: view.errors.append(str(error)))
        view.on("dialog", lambda dialog: view.errors.append(f"dialog: {dialog.message}"))
        view.goto(f"file://{hostile.root}/report.html")
        yield view
        browser.close()


@pytest.mark.slow
def test_nothing_of_a_trace_runs_whatever_is_opened(opened):
    buttons = opened.locator("#list button:visible")
    assert buttons.count() == 8  # two problems, four traces of each
    opened_traces = 0
    for label in opened.locator("#set option").all_inner_texts():
        opened.locator("#set").select_option(label=label)
        for button in opened.locator("#list button:visible").all():
            button.click()
            opened.locator("#pane-a").evaluate(
                "pane => pane.querySelectorAll('details').forEach(d => d.open = true)"
            )
            opened_traces += 1
    assert opened_traces >= 2 * len(HOSTILE)
    assert opened.evaluate("window.pwned === undefined && window.parent.pwned === undefined")
    assert opened.errors == []
    assert [url for url in opened.requested if not url.startswith("file://")] == []
    assert opened.locator("#pane-a script, #pane-a img, #pane-a iframe, #pane-a svg").count() == 0


@pytest.mark.slow
def test_two_traces_side_by_side_search_and_themes(opened):
    opened.locator("#list button:visible").first.click()
    beside = opened.locator("select.beside")
    assert beside.locator("option").count() > 1
    beside.select_option(index=1)
    a, b = (opened.locator(f"#pane-{x} article h4").inner_text() for x in "ab")
    assert a[0] == b[0]  # of one problem
    assert a != b
    opened.locator("#search").fill(HOSTILE[0])
    shown = opened.locator("#list button:visible").count()
    assert opened.locator("#shown").inner_text() == f"{shown} shown"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.evaluate(paper)
    opened.locator("#theme").click()
    assert opened.evaluate(paper) != light
    opened.emulate_media(color_scheme="dark")
    opened.locator("#theme").click()
    assert opened.evaluate(paper) == light  # what was chosen counts above what the system prefers


@pytest.mark.slow
def test_formulas_are_drawn_and_marks_are_there(opened):
    opened.locator("#set").select_option(label=f"text {len(HOSTILE) - 1} (2 of 2)")
    opened.locator("#list button:visible").first.click()
    pane = opened.locator("#pane-a")
    assert pane.locator("math mfrac").count() > 0
    box = pane.locator("math mfrac").first.bounding_box()
    assert box["height"] > box["width"]  # a fraction stands upright
    assert pane.locator("mark.foreign").all_inner_texts() == [
        "我们",
        "然后",
    ]  # the question is English
