from __future__ import annotations

import pytest
import sacrebleu

from editable_hf.evaluation.drawdown_metric import BleuDrawdown


def test_drawdown_equals_the_difference_of_sacrebleus_scores():
    references = ["the cat sat on the mat .", "a dog sleeps in the garden .", "we drink tea every morning ."]
    before = [references[0], references[1], "we drink coffee every morning ."]
    after = ["a cat is on a mat .", references[1], references[2]]
    result = BleuDrawdown().compute(predictions=after, predictions_before=before, references=references)
    scores = [sacrebleu.corpus_bleu(texts, [references], lowercase=True).score for texts in (before, after)]
    assert result["bleu_before"] == pytest.approx(scores[0], abs=1e-9)
    assert result["bleu"] == pytest.approx(scores[1], abs=1e-9)
    assert result["bleu_drawdown_signed"] == pytest.approx(scores[0] - scores[1], abs=1e-9)
    assert result["bleu_drawdown"] == abs(result["bleu_drawdown_signed"]) > 0
    assert result["outputs_changed"] == pytest.approx(2 / 3)


def test_no_change_is_no_drawdown():
    texts = ["one two three four five .", "six seven eight nine ten ."]
    result = BleuDrawdown().compute(predictions=texts, predictions_before=texts, references=texts)
    assert result["bleu_drawdown"] == 0 and result["outputs_changed"] == 0
