"""Many edits in one call, against the model edited by each of them."""

from __future__ import annotations

import pytest
import torch
import transformers
from seq2seq_models import build_seq2seq_models
from tiny_models import marian_config
from torch import nn

from editable_hf.core.edited_batch import CannotBatchEdits, edited_batch
from editable_hf.core.editing import edited
from editable_hf.core.selection import select_parameters
from editable_hf.experiments.timing import count_kernels

NUM_EDITS, NUM_SENTENCES = 3, 4
MODELS = build_seq2seq_models()
SEARCH = {
    "beam": {"num_beams": 3, "do_sample": False, "early_stopping": True},
    "several": {"num_beams": 4, "num_return_sequences": 2, "do_sample": False},
    "greedy": {"num_beams": 1, "do_sample": False},
}
TRANSLATED = ["Marian", "Bart", "T5", "M2M100"]


def random_model(name, dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(dtype)


def random_edits(model, names, count=NUM_EDITS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    draw = lambda param: torch.randn(param.shape, generator=generator).to(param.dtype)  # noqa: E731
    return [{name: (own[name] + 0.1 * draw(own[name])).detach() for name in names} for _ in range(count)]


def padded_inputs(side):
    ids = torch.randint(3, 40, (NUM_SENTENCES, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    for row, length in enumerate((7, 5, 4, 7)):
        mask[row, slice(0, 7 - length) if side == "left" else slice(length, 7)] = 0
    return {"input_ids": ids.where(mask == 1, 1), "attention_mask": mask}


def repeated(inputs, count=NUM_EDITS):
    return {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in inputs.items()}


def same_rows(batch, alone):
    """Rows of a batch end with padding where other edits' rows are longer."""
    length = min(batch.shape[1], alone.shape[1])
    rest = torch.cat([batch[:, length:], alone[:, length:]], dim=1)
    return torch.equal(batch[:, :length], alone[:, :length]) and bool((rest == 1).all())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("search", SEARCH)
@pytest.mark.parametrize("name", TRANSLATED)
def test_generate_gives_the_tokens_of_each_edited_model(name, search, side):
    model, inputs, options = random_model(name), padded_inputs(side), {**SEARCH[search], "max_new_tokens": 10}
    edits, found = random_edits(model, select_parameters(model, "last_decoder_layer")), []
    with edited_batch(model, edits):
        rows = model.generate(**repeated(inputs), **options)
    for edit, batch in zip(edits, rows.chunk(NUM_EDITS), strict=True):
        with edited(model, edit):
            alone = model.generate(**inputs, **options)
        assert same_rows(batch, alone)
        found.append(alone.tolist())
    assert found[0] != found[1]


@pytest.mark.parametrize("name", TRANSLATED)
def test_sampling_draws_what_the_same_rows_of_one_edited_model_draw(name):
    model, inputs = random_model(name), repeated(padded_inputs("right"))
    edits = random_edits(model, select_parameters(model, "last_decoder_layer"))

    def sample():
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return model.generate(**inputs, do_sample=True, max_new_tokens=8).chunk(NUM_EDITS)

    with edited_batch(model, edits):
        found = sample()
    for number, edit in enumerate(edits):
        with edited(model, edit):
            assert same_rows(found[number], sample()[number])


@pytest.mark.parametrize("name", TRANSLATED)
def test_half_precision_differs_by_its_rounding(name):
    """The best tokens may be tied in bfloat16; log-probabilities then tell: no further off than float32's from it."""
    exact, half = random_model(name), random_model(name, torch.bfloat16)
    exact.load_state_dict(half.state_dict())
    names, inputs = list(select_parameters(half, "last_decoder_layer")), padded_inputs("right")
    inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    edits = random_edits(half, names)
    with torch.no_grad(), edited_batch(half, edits):
        found = half(**repeated(inputs)).logits.float().log_softmax(-1).chunk(NUM_EDITS)
    for edit, batch in zip(edits, found, strict=True):
        with torch.no_grad(), edited(half, edit), edited(exact, {key: value.float() for key, value in edit.items()}):
            alone = half(**inputs).logits.float().log_softmax(-1)
            rounding = (alone - exact(**inputs).logits.log_softmax(-1)).abs().max()
        assert (batch - alone).abs().max() <= 2 * rounding


def test_tied_embeddings_of_encoder_decoder_and_head():
    model, inputs = random_model("M2M100"), padded_inputs("right")
    inputs["decoder_input_ids"] = inputs["input_ids"][:, 1:]
    edits = random_edits(model, [name for name, _ in model.named_parameters()])
    with torch.no_grad(), edited_batch(model, edits):
        found = model(**repeated(inputs)).logits.chunk(NUM_EDITS)
    for edit, batch in zip(edits, found, strict=True):
        with torch.no_grad(), edited(model, edit):
            torch.testing.assert_close(batch, model(**inputs).logits, rtol=1e-4, atol=1e-4)


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.norm, self.layer, self.root = nn.BatchNorm2d(6), nn.LayerNorm(6), nn.RMSNorm(6)
        self.head, self.scale = nn.Linear(6, 3, bias=False), nn.Parameter(torch.ones(1, 6))

    def forward(self, images):
        rows = self.norm(self.conv(images)).relu().mean((2, 3))
        return self.head(self.root(self.layer(rows) + self.scale))


def test_layers_of_images():
    torch.manual_seed(0)
    model, images = Everything().double().eval(), torch.randn(5, 4, 8, 8, dtype=torch.float64)
    model.norm.running_mean.normal_()
    edits = random_edits(model, [name for name, _ in model.named_parameters()])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad(), edited_batch(model, edits):
        found = model(images.repeat(NUM_EDITS, 1, 1, 1)).chunk(NUM_EDITS)
    for edit, batch in zip(edits, found, strict=True):
        with torch.no_grad(), edited(model, edit):
            torch.testing.assert_close(batch, model(images), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "parameter", "why"),
    [
        ("Marian", "model.encoder.embed_positions.weight", "embeds something else than the model's inputs"),
        ("FSMT", "model.decoder.layers.1.self_attn.k_proj.weight", "used on a tensor of shape"),
        ("T5", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "embeds something else"),
        ("ProphetNet", "prophetnet.decoder.ngram_embeddings.weight", "`__getitem__` uses it"),
    ],
)
def test_what_has_no_rows_is_refused_by_name(name, parameter, why):
    model = random_model(name)
    (own,) = (value for key, value in model.named_parameters() if key == parameter)
    with pytest.raises(CannotBatchEdits, match=f"`{parameter}` cannot be edited .* because .*{why}"):
        with edited_batch(model, random_edits(model, [parameter], count=7)):
            model.generate(**repeated(padded_inputs("right"), 7), max_new_tokens=4, num_beams=2)
    assert dict(model.named_parameters())[parameter] is own and type(own) is nn.Parameter


def test_refuses_no_edits_other_parameters_and_uneven_rows():
    model = nn.Sequential(nn.Linear(2, 2))
    edits = random_edits(model, ["0.weight"], count=2)
    for wrong in ([], [edits[0], {}], [{"1.weight": edits[0]["0.weight"]}]):
        with pytest.raises(ValueError, match="all of the same parameters of Sequential"):
            with edited_batch(model, wrong):
                pass
    with pytest.raises(CannotBatchEdits, match="2 edits share 3 rows"), edited_batch(model, edits):
        model(torch.ones(3, 2))


def test_decoding_for_16_edits_dispatches_at_most_half_as_many_kernels_again_as_for_one():
    torch.manual_seed(0)
    model = transformers.MarianMTModel(marian_config()).eval()
    ids = torch.randint(3, 40, (64, 6))
    edits = random_edits(model, select_parameters(model, "last_decoder_layer"), count=16)
    options = {"num_beams": 5, "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}

    def decode(count):
        rows = ids.repeat(count, 1)
        model.generate(rows, attention_mask=torch.ones_like(rows), **options)

    with edited(model, edits[0]):
        one = count_kernels(lambda: decode(1))
    with edited_batch(model, edits):
        many = count_kernels(lambda: decode(16))
    print(f"kernels: {one:,} for one edit, {many:,} for 16")
    assert many <= 1.5 * one
