"""What a patch changes: against translating twice by hand, and in three formats."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from patches.patch_checks import LAYER, made_up_result
from sacrebleu.metrics import BLEU, CHRF

from editable_hf import edited
from editable_hf.evaluation.translator import Translator
from editable_hf.review.page import format_html
from editable_hf.review.review import Change, Review, exceeds, sorted_changes
from editable_hf.review.text import format_markdown, format_terminal
from editable_hf.review.translations import review_translations
from editable_hf.review.words import mark_words, word_distance

pytestmark = pytest.mark.compat


def make_review(changes, **options):
    values = {"before": 30.0, "after": 29.5, "num_examples": 10, **options}
    return Review("translation", "fix", "me/model", "test.tsv", "BLEU", "sacrebleu", changes=changes, **values)


def make_change(index=0, before="the cat sat", after="the dog sat", **options):
    values = {"source": "die katze", "reference": "the dog sat", "edited": False, "distance": 0.3, "gain": 5.0}
    return Change(index=index, before=before, after=after, **{**values, **options})


def test_review_is_that_of_translating_twice(trained_marian, tokenizer, sentence_pairs):
    sources, references = (part[:40] for part in sentence_pairs)
    params = made_up_result(trained_marian, LAYER, 0, 0.05).params
    translator = Translator(trained_marian, tokenizer, sources, num_beams=2)
    before = translator()
    with edited(trained_marian, params):
        after = translator()
    review = review_translations(
        trained_marian,
        tokenizer,
        params,
        sources,
        references,
        edited_sources=[sources[3]],
        num_beams=2,
    )
    changed = {index: (old, new) for index, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    assert 2 < len(changed) < 40
    assert {change.index: (change.before, change.after) for change in review.changes} == changed
    assert review.share_changed == len(changed) / 40
    bleu = BLEU(tokenize="none")
    assert review.before == pytest.approx(bleu.corpus_score(before, [references]).score)
    assert review.after == pytest.approx(bleu.corpus_score(after, [references]).score)
    assert review.drawdown == pytest.approx(abs(review.before - review.after))
    chrf = CHRF()
    for change in review.changes:
        scores = [chrf.sentence_score(text, [references[change.index]]).score for text in changed[change.index]]
        assert change.gain == pytest.approx(scores[1] - scores[0])
        assert change.edited == (change.index == 3)
    distances = [change.distance for change in review.changes if not change.edited]
    assert distances == sorted(distances, reverse=True)


def test_without_references(trained_marian, tokenizer, sentence_pairs):
    params = made_up_result(trained_marian, LAYER, 0, 0.02).params
    review = review_translations(trained_marian, tokenizer, params, sentence_pairs[0][:5], num_beams=1)
    assert review.drawdown is None and all(change.gain is None for change in review.changes)
    assert "drawdown" not in format_terminal(review).lower() or "no references" in format_terminal(review)
    with pytest.raises(ValueError, match="Expected references to compute the drawdown"):
        exceeds(review, 0.1)


def test_wrong_sizes(trained_marian, tokenizer):
    with pytest.raises(ValueError, match="as many references or none, but got 2 sources and 1 references"):
        review_translations(trained_marian, tokenizer, {}, ["a", "b"], ["a"])


def test_marked_words():
    before, after = mark_words("the cat sat on it", "the dog sat it")
    for segments, text, marked in ((before, "the cat sat on it", ["cat", "on"]), (after, "the dog sat it", ["dog"])):
        assert "".join(segment.text for segment in segments) == text
        assert [segment.text.strip() for segment in segments if segment.kind != "equal"] == marked
    assert word_distance("a b c d", "a b c d") == 0 and word_distance("a b", "c d") == 1
    assert 0 < word_distance("a b c d", "a x c d") < 0.5


def test_limit():
    review = make_review([make_change()])
    assert exceeds(review, 0.4) and not exceeds(review, 0.5) and not exceeds(review, 1)
    with pytest.raises(ValueError, match="`max_drawdown` must be 0 or more, got -1"):
        exceeds(review, -1)


def test_edited_sentences_come_first():
    changes = sorted_changes([make_change(0, distance=0.9), make_change(1, distance=0.1, edited=True)])
    assert [change.index for change in changes] == [1, 0]


def test_terminal_and_markdown():
    changes = [make_change(index) for index in range(25)]
    text = format_terminal(make_review(changes), max_changes=3, max_drawdown=0.1)
    assert "[-cat-]" in text and "{+dog+}" in text and "and 22 more" in text and "30.00 -> 29.50" in text
    assert "\033" not in format_terminal(make_review([make_change(after="a\033[31m")]))
    markdown = format_markdown(make_review([make_change(before="a | b\n<b>", after="c")]))
    assert "a | b" not in markdown and "<b>" not in markdown
    assert len(format_markdown(make_review([make_change(after="x" * 3000)] * 100))) < 65_536


def test_page_stands_alone_and_escapes():
    attack = '<script>alert("x")</script>'
    change = make_change(source=attack, before=attack, after=f"{attack} y", reference=attack)
    page = format_html(make_review([change]), max_drawdown=0.1)
    assert attack not in page and "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert '<meta name="viewport"' in page and "prefers-color-scheme" in page


@pytest.fixture
def chromium():
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("needs Chromium")
    return [path, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]


@pytest.mark.slow
def test_page_filters_in_a_browser(chromium, tmp_path):
    changes = [make_change(index, source=f"satz {index}", gain=-1.0 if index % 3 == 0 else 1.0) for index in range(30)]
    page = format_html(make_review(changes, num_examples=100))
    # What a person would do, at the end of the page.
    steps = """<script>
    const set = (id, value) => { const e = document.getElementById(id); e.value = value;
      e.dispatchEvent(new Event("input", {bubbles: true})); };
    const count = () => document.querySelectorAll("#changes > :not([hidden])").length;
    const seen = [count()];
    set("effect", "worse"); seen.push(count());
    set("search", "satz 21"); seen.push(count());
    set("search", "nothing like it"); seen.push(count());
    set("search", ""); set("effect", ""); seen.push(count());
    document.title = seen.join(",") + ";" + (document.documentElement.scrollWidth <= window.innerWidth);
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run([*chromium, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
    # Its own script is the only one that may run, and it has shown the controls.
    assert 'id="controls">' in done.stdout, done.stderr
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    path.write_text(policy.sub("", page).replace("</body>", steps), encoding="utf-8")
    for width in (1200, 500):  # the narrowest window that headless Chromium makes
        command = [*chromium, f"--window-size={width},800", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert re.search("<title>(.*?)</title>", done.stdout)[1] == "30,10,1,0,30;true", done.stderr
