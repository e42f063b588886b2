"""Replays of real architectures give the whole model's outputs and gradients, and skip what they can."""

import copy

import pytest
import torch
from replay_checks import answered_names, assert_exact, names_under, perturbed, recorded
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import EncoderDecoderCache, ResNetConfig, ResNetForImageClassification

from editable_hf.core.functional import FunctionalModel
from editable_hf.core.replay import ReplayError, record

pytestmark = pytest.mark.compat

SOURCE, PREFIXES = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 1, 1]]), torch.tensor([[3, 11, 12, 13], [3, 14, 15, 1]])
BLOCK = {"marian": "model.decoder.layers.{}.", "bart": "model.decoder.layers.{}.", "t5": "decoder.block.{}."}


def translation_inputs():
    mask = (SOURCE != 1).long()
    return {"input_ids": SOURCE, "attention_mask": mask, "decoder_input_ids": PREFIXES, "use_cache": False}


def inside(names, prefix):
    return [name for name in names if name.startswith(prefix)]


def block(model, index):
    return BLOCK[model.config.model_type].format(index)


# Translation models


@pytest.mark.parametrize("index", [0, 1])
def test_edit_of_a_decoder_layer(seq2seq, index):
    model, inputs = seq2seq.eval(), translation_inputs()
    names = names_under(model, block(model, index))
    recording = recorded(model, names, kwargs=inputs)
    assert_exact(recording, names, kwargs=inputs)
    answered = answered_names(recording)
    assert any(name.endswith("encoder") for name in answered)
    assert not inside(answered, block(model, index))
    assert (block(model, 0).rstrip(".") in answered) == (index == 1)


def test_edit_within_a_layer(marian):
    model, inputs, names = marian.eval(), translation_inputs(), ["model.decoder.layers.1.fc2.weight"]
    recording = recorded(model, names, kwargs=inputs)
    assert_exact(recording, names, kwargs=inputs)
    layer = "model.decoder.layers.1."
    within = {layer + part for part in ("self_attn", "self_attn_layer_norm", "encoder_attn", "fc1")}
    assert within <= set(answered_names(recording))
    assert not {layer + "fc2", layer + "final_layer_norm"} & set(answered_names(recording))


def test_edit_of_an_encoder_layer_reruns_the_decoder(seq2seq):
    model, inputs = seq2seq.eval(), translation_inputs()
    prefix = "encoder.block.0." if model.config.model_type == "t5" else "model.encoder.layers.0."
    recording = recorded(model, names_under(model, prefix), kwargs=inputs)
    assert_exact(recording, names_under(model, prefix), kwargs=inputs)
    assert not [name for name in answered_names(recording) if "decoder" in name]


def test_edit_of_tied_embeddings_lets_nothing_answer_that_depends_on_them(seq2seq):
    model, inputs = seq2seq.eval(), translation_inputs()
    (name,) = [name for name, _ in model.named_parameters() if name.endswith("shared.weight")]
    recording = recorded(model, [name], kwargs=inputs)
    assert_exact(recording, [name], kwargs=inputs)
    assert all("position" in answered for answered in answered_names(recording))


def test_everything_edited_is_the_whole_model(seq2seq):
    model, inputs = seq2seq.eval(), translation_inputs()
    names = [name for name, param in model.named_parameters() if param.requires_grad]
    assert_exact(recorded(model, names, kwargs=inputs), names, kwargs=inputs)


def test_cache_objects_are_never_answered(marian):
    model, inputs = marian.eval(), {**translation_inputs(), "use_cache": True}
    names = names_under(model, "model.decoder.layers.1.")
    recording = recorded(model, names, kwargs=inputs)
    assert_exact(recording, names, kwargs=inputs)
    answered = answered_names(recording)
    assert "model.encoder" in answered
    # Its attention writes to the cache, which a replay makes anew.
    assert not {"model.decoder.layers.0", "model.decoder.layers.0.self_attn"} & set(answered)
    params = perturbed(model, names)
    caches = [
        # By type: transformers 5.24 renames the output from `past_key_values` to `cache`.
        next(value for value in call(params).values() if isinstance(value, EncoderDecoderCache))
        for call in (recording.replay, lambda values: functional_call(model, values, (), inputs))
    ]
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 4
    for kind in ("self_attention_cache", "cross_attention_cache"):
        for ours, whole in zip(*(getattr(cache, kind).layers for cache in caches), strict=True):
            torch.testing.assert_close(ours.keys, whole.keys, rtol=0, atol=1e-12)


def test_hidden_states_and_attentions_are_complete(marian):
    # transformers collects them by hooks on inner modules, which would not run where an outer one answers.
    model = marian.eval()
    inputs = {**translation_inputs(), "output_hidden_states": True, "output_attentions": True}
    names = names_under(model, "model.decoder.layers.1.")
    recording = recorded(model, names, kwargs=inputs)
    assert_exact(recording, names, kwargs=inputs)
    params = perturbed(model, names)
    replayed, whole = recording.replay(params), functional_call(model, params, (), inputs)
    for key in ("decoder_hidden_states", "decoder_attentions", "cross_attentions", "encoder_hidden_states"):
        assert len(replayed[key]) == len(whole[key]) > 1, key
        for ours, expected in zip(replayed[key], whole[key], strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


# Image models


@pytest.fixture(scope="module")
def resnet():
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2], layer_type="basic", num_labels=5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNetForImageClassification(config).double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after some training
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    "part",
    [
        "classifier.",
        "resnet.encoder.stages.1.layers.1.layer.1.convolution.",  # mid-block: `hidden_state += residual` follows
        "resnet.encoder.stages.1.layers.0.shortcut.",
        "resnet.encoder.stages.0.layers.0.layer.0.normalization.",
        "resnet.embedder.",
    ],
)
def test_resnet(resnet, part):
    model = copy.deepcopy(resnet)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs, names = {"pixel_values": pixels}, names_under(model, part)
    recording = recorded(model, names, kwargs=inputs)
    assert_exact(recording, names, kwargs=inputs)
    assert bool(recording.cached) == ("embedder" not in part)


def test_batch_norm_and_dropout_of_the_suffix_follow_the_mode_of_the_replay(resnet):
    model = copy.deepcopy(resnet).train()
    pixels = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = names_under(model, "resnet.encoder.stages.1.layers.1.")
    kept = {}
    hook = model.resnet.encoder.stages[1].layers[0].register_forward_hook(lambda m, i, o: kept.update(x=o.detach()))
    recording = recorded(model, names, kwargs={"pixel_values": pixels}, mixed_modes=True)
    hook.remove()
    model.eval()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    params = perturbed(model, names)
    logits = recording.replay(params).logits
    # By hand: the train activations before the edited layer, then the rest in eval mode.
    values = {name.removeprefix("resnet.encoder.stages.1.layers.1."): value for name, value in params.items()}
    hidden = functional_call(model.resnet.encoder.stages[1].layers[1], values, (kept["x"],))
    expected = model.classifier(model.resnet.pooler(hidden))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())


# Hand-written models


class Dense(nn.Module):
    """Every layer reads all earlier outputs, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * (i + 1), 4) for i in range(4))
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(torch.tanh(layer(torch.cat(features, -1))))
        return self.head(torch.cat(features, -1))


class UsesChildsWeight(nn.Module):
    """Two children whose weights the parent uses itself, as `nn.MultiheadAttention` does with its `out_proj`."""

    def __init__(self):
        super().__init__()
        self.first, self.projection, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        hidden = F.linear(hidden, weight=self.projection.weight, bias=self.projection.bias)
        return self.head(torch.tanh(hidden)) + self.projection(x)[:, :3]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attention, self.head = nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(self.attention(hidden, hidden, hidden)[0])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.lstm, self.head = nn.Linear(4, 4), nn.LSTM(4, 4, num_layers=2), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.lstm(torch.tanh(self.first(x)))[0])


@pytest.mark.parametrize(
    ("build", "part", "expected"),
    [
        (Dense, "layers.2.", ["layers.0", "layers.1"]),
        (Dense, "head.", ["layers.0", "layers.1", "layers.2", "layers.3"]),
        (UsesChildsWeight, "projection.", ["first"]),
        (UsesChildsWeight, "head.", ["first"]),
        (Attention, "attention.in_proj_weight", ["first"]),
        (Attention, "attention.out_proj.", ["first"]),
        (Attention, "head.", ["first", "attention"]),
        (Recurrent, "lstm.weight_hh_l1", ["first"]),
        (Recurrent, "head.", ["first", "lstm"]),
    ],
)
def test_hand_written_models(build, part, expected):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build().double().eval(), torch.randn(3, 4, dtype=torch.float64)
    names = names_under(model, part)
    recording = recorded(model, names, (x,))
    assert answered_names(recording) == expected
    assert_exact(recording, names, (x,))


# `record` itself


def test_stop_computes_nothing_after_the_moment():
    model, x, calls = Dense().double(), torch.randn(2, 4, dtype=torch.float64), []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    reached_end = False
    with record(model, [model.layers[2].weight], stop=True) as recording:
        model(x)
        reached_end = True
    assert not reached_end and calls == [0, 1]
    assert answered_names(recording) == ["layers.0", "layers.1"]
    assert_exact(recording, ["layers.2.weight"], (x,))


def test_model_must_be_called_exactly_once():
    model, x = Dense().double(), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(ReplayError, match="Dense was not called"), record(model, [model.head.weight]):
        model.head(torch.randn(2, 20, dtype=torch.float64))
    with pytest.raises(ReplayError, match="Dense was called twice"), record(model, [model.head.weight]):
        model(x)
        model(x)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_functional_model_runs_only_the_suffix_and_tells_inputs_apart(marian):
    model, inputs = marian.eval(), translation_inputs()
    names, calls, layer = names_under(model, "model.decoder.layers.1."), [], model.model.encoder.layers[0].fc1
    layer.forward = lambda hidden, forward=layer.forward: calls.append(1) or forward(hidden)
    functional_model = FunctionalModel(model, names)
    other = {**inputs, "decoder_input_ids": PREFIXES.flip(0)}
    for seed in range(3):
        for each in (inputs, other):
            params = perturbed(model, names, seed)
            logits, before = functional_model(params, **each).logits, len(calls)
            expected = functional_call(model, params, (), each).logits
            del calls[before:]
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    assert len(calls) == 2
