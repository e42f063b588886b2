from __future__ import annotations

import pytest
import torch
from memo_checks import LAST, check, perturb, stock, translator_of_tokens
from transformers import M2M100Config, M2M100ForConditionalGeneration

from editable_hf.evaluation.memo_translator import MemoTranslator
from editable_hf.evaluation.prefix_memo import FinishedSentences
from editable_hf.evaluation.split_model import MemoUnavailable

# What `generate` allows


def text(rows):
    """Token ids without padding and end, which `generate` fills up with either."""
    return [[[token for token in row.split("-") if token not in ("1", "2")] for row in outputs] for outputs in rows]


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(3, -1.0), (4, 1.0), (5, 0.0)])
@pytest.mark.parametrize("together", [1, 2])
def test_few_tokens(bart, tokenizer, sources, num_beams, length_penalty, together):
    suppressed = [token for token in range(len(tokenizer)) if token not in (2, 9)]
    options = {"length_penalty": length_penalty, "forced_eos_token_id": None}
    bart.generation_config.update(suppress_tokens=suppressed, **options)
    translator, edits = translator_of_tokens(bart, tokenizer, sources[:4], num_beams), perturb(bart, LAST, (0.0, 3.0))
    memo = MemoTranslator(translator, LAST, edits_together=together)
    assert text(memo(edits)) == text(stock(translator, edits))


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([[2, 5, 2], [2, 5, 2], [2, 6, 2]], 2),  # the same twice
        ([[2, 5, 2], [2, 7, 2], [2, 5, 7]], 2),  # ended a token ago
        ([[2, 5, 6], [2, 5, 5], [2, 5, 2]], 1),
    ],
)
def test_hypotheses_that_are_none(rows, count):
    finished = FinishedSentences([2, 7], num_sentences=1, num_beams=3, device=torch.device("cpu"))
    assert finished(torch.tensor([*rows, [2, 8, 2]]), None).tolist() == [False] * 4
    assert finished.ended.tolist() == [count]


def test_more_is_asked_for_than_expected(bart, tokenizer, sources, monkeypatch):
    memo = MemoTranslator(translator_of_tokens(bart, tokenizer, sources[:2]), LAST)
    monkeypatch.setattr(FinishedSentences, "alive", property(lambda self: torch.zeros_like(self.ended).bool()))
    with pytest.raises(RuntimeError, match="asked for another token although every sentence has all its hypotheses"):
        memo(perturb(bart, LAST, (0.1,)))


@pytest.mark.parametrize(
    "options",
    [{"encoder_no_repeat_ngram_size": 1}, {"encoder_repetition_penalty": 1.5}],
)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_options_about_the_source(bart, tokenizer, sources, options, num_beams):
    plain = stock(translator_of_tokens(bart, tokenizer, sources, num_beams), perturb(bart, LAST, (0.0,)))
    bart.generation_config.update(**options)
    check(bart, tokenizer, sources, LAST, num_beams)
    assert plain != stock(translator_of_tokens(bart, tokenizer, sources, num_beams), perturb(bart, LAST, (0.0,)))


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"num_beams": 4, "num_return_sequences": 2},
        {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True},
    ],
)
def test_options_that_are_overridden(bart, tokenizer, sources, options):
    translator, edits = translator_of_tokens(bart, tokenizer, sources), perturb(bart, LAST, (0.0, 0.3))
    expected = stock(translator, edits)
    bart.generation_config.update(**options)
    assert translator() == expected[0]
    assert MemoTranslator(translator, LAST)(edits) == expected


def test_guidance(bart, tokenizer, sources):
    translator = translator_of_tokens(bart, tokenizer, sources)
    bart.generation_config.guidance_scale = 1.5
    with pytest.raises(MemoUnavailable, match="`guidance_scale=1.5` makes `generate` run the model twice"):
        MemoTranslator(translator, LAST)
    bart.generation_config.guidance_scale = 1
    MemoTranslator(translator, LAST)


# What edits do


@pytest.mark.parametrize("together", [2, 4])
def test_edits_that_are_not_finite(bart, tokenizer, sources, together):
    translator = translator_of_tokens(bart, tokenizer, sources, num_beams=3)
    own, *edits = perturb(bart, LAST, (0.0, 0.1, 0.3))
    edits[1:1] = [{name: torch.full_like(param, float("nan")) for name, param in own.items()}]
    edits.append({name: param * 1e300 for name, param in own.items()})
    memo = MemoTranslator(translator, LAST, edits_together=together)
    assert memo(edits) == stock(translator, edits)


def test_only_a_group_is_copied_at_once(bart, tokenizer, sources, monkeypatch):
    memo = MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST, edits_together=1)
    edits, calls = perturb(bart, LAST, (0.0, 0.1, 0.3)), []
    expected, replicate, generate = memo(edits), memo.split.replicate, memo.generate
    monkeypatch.setattr(memo.split, "replicate", lambda *args: calls.append("r") or replicate(*args))
    monkeypatch.setattr(memo, "generate", lambda *args: calls.append("g") or generate(*args))
    memo.group_size = 2
    assert memo(edits) == expected
    assert "".join(calls) == "rr" + 2 * 3 * "g" + "r" + 3 * "g"  # three batches


def test_copies_are_in_eval_mode(bart, tokenizer, sources):
    memo = MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST)
    bart.train()
    copies = memo.split.replicate(perturb(bart, LAST, (0.0,)))
    assert copies and not any(module.training for modules in copies.values() for module in modules)


def test_memory_of_cross_attention(bart, tokenizer, sources):
    memo = MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST)
    batch = memo.new_memo(0)
    memo.generate(0, batch, memo.split.replicate(perturb(bart, LAST, (0.0, 0.1))), 2)
    tensors = [tensor for pair in batch.cross for tensor in pair]
    assert len(tensors) == 2 * memo.split.num_kept
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in tensors)
    states = batch._states.num_bytes + batch._keys_values.num_bytes
    assert memo.statistics.peak_bytes == batch.num_bytes == states + sum(tensor.nbytes for tensor in tensors)


# Models


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(bart, tokenizer, sources, dtype):
    with pytest.raises(MemoUnavailable, match=rf"the model is in {dtype}, where rounding alone changes translations"):
        MemoTranslator(translator_of_tokens(bart.to(dtype), tokenizer, sources), LAST)


def test_positions_that_depend_on_padding(tokenizer, sources):
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 3}
    config = M2M100Config(vocab_size=len(tokenizer), **sizes, **heads, init_std=0.3)
    torch.manual_seed(0)
    model = M2M100ForConditionalGeneration(config).double().eval()
    check(model, tokenizer, sources, LAST)


def test_attentions_that_were_asked_for(bart, tokenizer, sources):
    bart.config.output_attentions = bart.config.output_hidden_states = True
    check(bart, tokenizer, sources, LAST)
    assert any(module._forward_hooks for module in bart.model.decoder.layers[0].modules())
    assert check(bart, tokenizer, sources, LAST).split.num_kept == 2  # the hooks of the first time do not matter


def test_models_that_fail_while_they_are_observed(bart, tokenizer, sources):
    def fail(*args):
        raise RuntimeError("value cannot be converted")

    translator = translator_of_tokens(bart, tokenizer, sources)
    bart.model.decoder.register_forward_pre_hook(fail)
    reason = r"what its decoder does cannot be observed \(value cannot be converted\)"
    with pytest.raises(MemoUnavailable, match=reason) as caught:
        MemoTranslator(translator, LAST)
    assert type(caught.value.__cause__) is RuntimeError


class ByHand(torch.nn.Module):
    """Uses the parameters of a linear module without calling it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, inputs):
        return torch.nn.functional.linear(inputs, self.linear.weight, self.linear.bias)


def test_modules_whose_zeros_are_used_elsewhere(bart, tokenizer, sources):
    layer = bart.model.decoder.layers[2]
    layer.fc2.bias.data.zero_()
    layer.fc2 = ByHand(layer.fc2)
    with pytest.raises(MemoUnavailable, match="its decoder gives something else in two parts"):
        MemoTranslator(translator_of_tokens(bart, tokenizer, sources), "decoder.layers.2.fc2.linear.bias")
