"""The page of a review as a browser shows it, on a wide screen and on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time

import pytest

from editable_hf.review.page import format_html
from editable_hf.review.review import IMAGE, Change, Review, sorted_changes

ATTACK = (
    '</script><script>document.title = "broken"</script><img src="https://example.org/x.png" onerror="parent.x=1">'
)
LONG = "donaudampfschifffahrtsgesellschaftskapitänsmütze" * 3


def make_change(index, distance=0.3, gain=5.0, **options):
    values = {"source": f"satz {index}", "reference": "the dog sat", "before": "the cat sat", "after": "the dog sat"}
    return Change(index=index, edited=index == 7, distance=distance, gain=gain, **{**values, **options})


def make_review(changes, **options):
    values = {"kind": "translation", "metric": "BLEU", "metric_detail": "sacrebleu", "before": 30.0, "after": 29.5}
    names = {"patch": f"fix {ATTACK}", "base_model": LONG, "regression_set": "test.tsv"}
    return Review(**{**values, **names, **options}, num_examples=10_000, changes=sorted_changes(changes))


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture
def look(tmp_path):
    """Opens a page in a frame of some width, runs JavaScript that sees it as `page`, and gives what that returns.

    Within a frame, because the page itself runs no script but its own, and no window is as narrow as a phone.
    """
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium or Chrome to open the page in")

    def look(page, script, width=1200):
        path = tmp_path / "frame.html"
        path.write_text(
            f'<!DOCTYPE html><meta charset="utf-8"><script>function look(frame) {{ const page = '
            f'frame.contentDocument; const found = (() => {{ {script} }})(); document.getElementById("found")'
            f'.textContent = JSON.stringify(found); }}</script><pre id="found"></pre>'
            f'<iframe style="border:0;width:{width}px;height:800px" onload="look(this)" '
            f'srcdoc="{html.escape(page)}"></iframe>',
            encoding="utf-8",
        )
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [chromium, *options, "--window-size=1300,900", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))

    return look


SHOWN = """
const shown = () => Array.from(page.querySelectorAll("article:not([hidden])"), (row) => Number(row.dataset.index));
const set = (id, value, event) => { const element = page.getElementById(id);
  if (element.type === "checkbox") element.checked = value; else element.value = value;
  element.dispatchEvent(new Event(event || "input", {bubbles: true})); };
"""


@pytest.mark.slow
def test_searches_filters_and_sorts(look):
    changes = [
        make_change(3, distance=0.9, gain=-4.0),
        make_change(7, distance=0.1, gain=2.0),
        make_change(5, distance=0.5, gain=-9.0, source="Ein Übermut"),
        make_change(9, distance=0.2, gain=0.0),
    ]
    found = look(
        format_html(make_review(changes)),
        SHOWN
        + """
        const seen = {start: shown()};
        set("search", " übermut "); seen.search = shown(); set("search", "");
        set("effect", "worse"); seen.worse = shown();
        set("effect", "better"); seen.better = shown(); set("effect", "");
        set("distance", 50); seen.distance = shown(); seen.count = page.getElementById("shown").textContent;
        set("distance", 95); seen.nothing = !page.getElementById("nothing").hidden; set("distance", 0);
        set("edited", true); seen.edited = shown(); set("edited", false);
        for (const order of ["worst", "best", "index", "rank"]) {
          set("order", order, "change"); seen[order] = shown();
        }
        return seen;""",
    )
    assert found == {
        "start": [7, 3, 5, 9],
        "search": [5],
        "worse": [3, 5],
        "better": [7],
        "distance": [3, 5],
        "count": "2 of 4 changed translations",
        "nothing": True,
        "edited": [7],
        "worst": [5, 3, 9, 7],
        "best": [7, 9, 3, 5],
        "index": [3, 5, 7, 9],
        "rank": [7, 3, 5, 9],
    }


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("kind", ["translation", "image"])
def test_fits_the_screen_and_shows_text_as_text(look, width, kind):
    texts = {"source": f"{LONG} {ATTACK}", "reference": LONG, "before": LONG, "after": f"{ATTACK} {LONG}"}
    picture = "data:image/png;base64,iVBORw0KGgo="
    changes = [make_change(7, **texts, picture=picture if kind == IMAGE else None), make_change(2, **texts)]
    found = look(
        format_html(make_review(changes, kind=kind), max_drawdown=0.1),
        """
        const all = (which) => Array.from(page.querySelectorAll(which));
        const root = page.documentElement, title = page.querySelector("h1").textContent;
        return {overflow: root.scrollWidth - root.clientWidth, title: title, name: page.title,
          images: page.querySelectorAll('img:not([src^="data:"])').length, attacked: "x" in window,
          loaded: frame.contentWindow.performance.getEntriesByType("resource").length,
          after: page.querySelector(".after dd").textContent,
          low: all("select, input[type=search]").filter((one) => one.offsetHeight < 36).length,
          cut: all("h1, h2, p, dd, span, select, label").filter((one) => one.scrollWidth > one.offsetWidth + 1 ||
            one.getBoundingClientRect().right > root.clientWidth).map((one) => one.outerHTML),
          controls: !page.getElementById("controls").hidden};""",
        width,
    )
    assert found == {
        "overflow": 0,
        "title": f"fix {ATTACK}",
        "name": f"Review of fix {ATTACK}",
        "images": 0,
        "attacked": False,
        "loaded": 0,
        "after": texts["after"],
        "low": 0,
        "cut": [],
        "controls": True,
    }


@pytest.mark.slow
def test_5000_changes_are_filtered_while_one_types(look):
    words = [f"word{number}" for number in range(25)]
    changes = [
        make_change(index, distance=index % 10 / 10, before=" ".join(words), after=" ".join([f"w{index}", *words[1:]]))
        for index in range(5000)
    ]
    start = time.perf_counter()
    page = format_html(make_review(changes))
    seconds = time.perf_counter() - start
    found = look(
        page,
        SHOWN
        + """
        const start = performance.now();
        set("search", "w4321"); const searched = shown(); set("search", "");
        set("order", "worst", "change"); set("distance", 90);
        return {searched: searched, num: shown().length, seconds: (performance.now() - start) / 1000};""",
    )
    assert found["searched"] == [4321] and found["num"] == 500
    assert seconds < 20 and found["seconds"] < 10 and len(page) < 2**24


def test_only_the_controls_that_do_something():
    unknown = format_html(make_review([make_change(1, gain=None, reference=None)], before=None, after=None))
    assert 'value="worse"' not in unknown and 'value="worst"' not in unknown and "not known" in unknown
    assert '<label hidden><input type="checkbox" id="edited">' in unknown
    assert '<label ><input type="checkbox" id="edited">' in format_html(make_review([make_change(7)]))
    assert '<label class="distance" hidden>' in format_html(make_review([make_change(7)], kind=IMAGE))
    assert "0 changed translations" in format_html(make_review([]))


@pytest.mark.parametrize(("limit", "tone"), [(0.4, "bad"), (0.5, "good")])
def test_says_whether_the_limit_holds(limit, tone):
    page = format_html(make_review([make_change(1)]), max_drawdown=limit)
    assert f'<div class="figure {tone}"><dt>Drawdown</dt><dd>0.50' in page
