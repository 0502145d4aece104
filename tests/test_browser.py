"""The page in a real browser: it fits, it can be used by keyboard, and what is pointed at shows what it owns."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from test_html import _page, _panel

from cdisc.app.report import html

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
WIDTHS = (390, 768, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A page with all that there can be: many columns, long names, dials, a hierarchy."""
    panels = [_panel((32, 32, 3), concepts=8, name="a_file_with_a_very_long_name_indeed.png"), _panel((8, 8, 1))]
    for panel in panels:
        for name in ("embedding_w1", "embedding", "query_only sigma=0.1"):
            panel.samples[name] = panel.samples["poe"]
        assert panel.discovery is not None
        panel.discovery.pool.t[:] = np.repeat([50, 400], 8)[-len(panel.discovery.pool.t) :]
    levels = [{"t": t, "modes": [{"parent": None if t else 0, "basin": 1}] * 30} for t in (0, 50)]
    found = _page(
        *panels,
        dials={"embedding": {1.0: "embedding_w1", 2.0: "embedding"}},
        shown_first=("embedding_w1", "embedding", "poe"),
        hierarchy={"nfe": 1, "levels": levels},
        hierarchy_modes=[np.zeros((30, 4, 4, 3))] * 2,
    )
    methods = found.results["methods"]
    more = {"precision": 0.5, "right_recall": 0.5, "coverage": 0.5, "f1": 0.5, "kid": -0.123}
    factors = {f"long_factor_{i}": 0.5 for i in range(5)}
    for name in ("poe", "embedding_w1", "embedding", "query_only sigma=0.1"):
        methods[name] = methods["top1"] | more | {"attribute_accuracy": factors}
    folder = tmp_path_factory.mktemp("page")
    html.write(folder, found)
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_nothing_is_wrong(browser: Browser, page: pathlib.Path, width: int, dark: bool) -> None:
    # Catches: a table or a hash that is wider than the screen, a script that fails, colours of the other scheme.
    browser.said.clear()
    browser.open(page, width, dark)
    browser.run("document.querySelectorAll('details').forEach(part => (part.open = true))")
    assert browser.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *:not(svg *)')].filter(part => !part.closest('.scroll'))"
    assert browser.run(f"{wide}.filter(part => part.getBoundingClientRect().right > innerWidth).length") == 0
    bright = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
    assert (int(browser.run(bright)) < 128) == dark
    assert browser.said == []


def _lit(browser: Browser) -> list[str]:
    """The regions of the first query that are left clear."""
    regions = "[...document.querySelectorAll('#query-1 .owned .lit')]"
    shown = f"{regions}.filter(part => [part, part.parentNode].every(e => getComputedStyle(e).display !== 'none'))"
    return browser.run(f"{shown}.map(part => part.parentNode.dataset.concept)")


def _visible_areas(browser: Browser) -> int:
    areas = "[...document.querySelectorAll('#query-1 .owned g')]"
    return browser.run(f"{areas}.filter(part => getComputedStyle(part).display !== 'none').length")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_concept_that_is_pointed_at_shows_what_it_owns(browser: Browser, page: pathlib.Path, width: int) -> None:
    # Catches: another concept's region, all regions at once, one that stays when the mouse has left.
    browser.open(page, width)
    assert _lit(browser) == [] and _visible_areas(browser) == 8
    before = browser.picture()
    browser.point("#query-1 button[data-concept='3']")
    told = "document.querySelector('#query-1 .told').textContent"
    assert _lit(browser) == ["3"] and _visible_areas(browser) == 1
    assert browser.run(told).startswith("Concept 3, a mode at t = 150, owns ")
    assert browser.picture() != before
    browser.point("#query-1 h2")
    assert _lit(browser) == [] and browser.run(told).startswith("Point at a concept")


def test_a_tap_holds_a_concept_until_the_next_one(browser: Browser, page: pathlib.Path) -> None:
    browser.open(page, 390)
    for concept in "25":
        browser.run(f"document.querySelector('#query-1 button[data-concept=\"{concept}\"]').click()")
        assert _lit(browser) == [concept]
        pressed = "[...document.querySelectorAll('[aria-pressed=true]')].map(part => part.dataset.concept)"
        assert browser.run(pressed) == [concept]
    browser.run("document.querySelector('#query-1 button[data-concept=\"5\"]').click()")
    assert _lit(browser) == [] and browser.run(pressed) == []


def test_the_keyboard_reaches_everything(browser: Browser, page: pathlib.Path) -> None:
    # Catches: a concept or a dial without focus, a folded query that a link does not open.
    browser.open(page, 1280)
    browser.run("document.querySelector('#query-1').open = false")
    for _ in range(2):  # the list, and its first query
        browser.key("Tab")
    assert browser.run("document.activeElement.hash") == "#query-1"
    browser.key("Enter")
    assert browser.run("document.querySelector('#query-1').open")
    reached = set()
    for _ in range(40):
        browser.key("Tab")
        reached.add(browser.run("(part => part.dataset.concept ?? part.type ?? part.tagName)(document.activeElement)"))
        if browser.run("document.activeElement.closest('#query-1 .found') !== null"):
            assert _lit(browser) == [browser.run("document.activeElement.dataset.concept")]
    assert reached >= {"1", "8", "range", "SUMMARY"}


def test_dials_show_one_step_at_a_time(browser: Browser, page: pathlib.Path) -> None:
    # Catches: a dial that starts elsewhere, a step that stays, a mark of another method.
    browser.open(page, 1280)
    seen = "[...document.querySelectorAll('{} .step')].filter(step => !step.hidden).map(step => step.dataset.step)"
    noise, sheets, chart = (
        "#query-1 .steps[data-label^=noise]",
        "#query-1 .steps[data-label^=guidance]",
        "#methods .steps",
    )
    for dial, start, end in ((noise, "50", "400"), (sheets, "2", "2"), (chart, "1", "2")):
        quoted = seen.format(dial)
        assert browser.run(quoted) == [start]
        browser.run(f"document.querySelector(`{dial} input`).focus()")
        browser.key("ArrowRight")
        assert browser.run(quoted) == [end]
    lit = "[...document.querySelectorAll('svg [data-method].on')].map(mark => mark.dataset.method)"
    assert browser.run(lit) == ["embedding"]
