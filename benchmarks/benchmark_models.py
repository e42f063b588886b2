"""Models, batches and requests of the benchmarks, and the same computations on the whole model in plain torch."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import MarianMTModel, ResNetConfig, ResNetForImageClassification

from editable_hf.core import constraints
from editable_hf.core.functional import eval_mode
from editable_hf.models import iwslt_transformer_config
from editable_hf.models.iwslt_transformer import TRANSFORMER_SIZES

VOCABULARY = 10_000
PAD, EOS = 1, 2


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ", ".join(TRANSFORMER_SIZES)
    parser.add_argument("--size", default="iwslt_de_en", help=f"of the Marian, one of {sizes}; the first is fairseq's")
    parser.add_argument("--rounds", type=int, default=5, help="times each step is timed, after one warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", help="file for all figures")


@contextmanager
def launches_dominate_on(devices: set[str]) -> Iterator[None]:
    """Within the block edits are made as on a GPU where the model is on one of `devices`, elsewhere as on a CPU."""
    usual, constraints.ONE_PASS_DEVICES = constraints.ONE_PASS_DEVICES, devices
    try:
        yield
    finally:
        constraints.ONE_PASS_DEVICES = usual


def random_model(size: str, device: torch.device, dropout: float = 0.3, narrow: bool = False) -> MarianMTModel:
    """A Marian with random weights and 10,000 pieces; `iwslt_de_en` is fairseq's, 41.8 M parameters.

    A `narrow` one has as many layers, of 32 features: the same kernels on fewer numbers.
    """

    class Pieces(SimpleNamespace):
        def __len__(self):
            return VOCABULARY

    torch.manual_seed(0)
    pieces = Pieces(bos_token_id=0, pad_token_id=PAD, eos_token_id=EOS)
    config = iwslt_transformer_config(pieces, size, dropout)
    if narrow:
        config.update({"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64})
    return MarianMTModel(config).to(device)


def make_batch(num_tokens: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Sentences of `length` source and target tokens, `num_tokens` target tokens in all."""
    generator = torch.Generator().manual_seed(1)
    shape = (num_tokens // length, length)
    source, labels = (torch.randint(3, VOCABULARY, shape, generator=generator).to(device) for _ in range(2))
    decoder_input_ids = labels.roll(1, dims=1)
    decoder_input_ids[:, 0] = EOS
    return {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "decoder_input_ids": decoder_input_ids,
        "labels": labels,
    }


def make_request(model: MarianMTModel, num_alternatives: int, length: int, shared: bool = True) -> dict[str, Any]:
    """A request that does not hold, whose alternatives share prefixes as those of a beam search do, or none.

    With 32 alternatives of 25 tokens, about a quarter of all tokens have a prefix of their own; it was 22% (quartiles
    18% and 30%) over the requests of the recipe's `small` model on IWSLT14.
    """
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    alternatives = [tokens(length)]
    while len(alternatives) < num_alternatives:
        kept = max(rng.randrange(length) for _ in range(3)) if shared else 0
        alternatives.append(rng.choice(alternatives)[:kept] + tokens(length - kept))
    request = {"id": 0, "input_ids": tokens(length - 1) + [EOS], "alternatives": alternatives}
    requests = [request | {"labels": tokens(length - 1) + [EOS]} for _ in range(16)]
    with torch.no_grad(), eval_mode(model):
        values = [whole_model_constraint(model, {}, each).item() for each in requests]
    return requests[values.index(max(values))]


def cifar_resnet18(device: torch.device) -> ResNetForImageClassification:
    """ResNet-18 for 32x32 images: a 3x3 stem of stride 1 without pooling; 11,173,962 parameters."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    model = ResNetForImageClassification(config)
    model.resnet.embedder.embedder.convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.resnet.embedder.pooler = nn.Identity()
    return model.to(device)


# The whole model at every step, every alternative differentiated: what one would write without this package.


def whole_model_constraint(model: MarianMTModel, params: Mapping[str, Tensor], request: Mapping[str, Any]) -> Tensor:
    """`l_e` of section 4.4 from one forward of the whole model over the target and all alternatives."""
    device = model.device
    rows = [request["labels"], *request["alternatives"]]
    labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], True, -100).to(device)
    decoder_input_ids = labels.roll(1, dims=1)
    decoder_input_ids[:, 0] = EOS
    source = torch.tensor([request["input_ids"]] * len(rows), device=device)
    inputs = {
        "input_ids": source,
        "attention_mask": torch.ones_like(source),
        "decoder_input_ids": decoder_input_ids.masked_fill(decoder_input_ids == -100, PAD),
        "use_cache": False,
    }
    logits = functional_call(model, dict(params), (), inputs).logits
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    scores = -losses.view_as(labels).sum(1)
    return scores[1:].max() - scores[0]


def whole_model_edit(
    model: nn.Module,
    constraint: Any,
    names: Iterable[str],
    max_steps: int,
    learning_rate: float,
    beta: Tensor | float = 0.5,
    create_graph: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """RMSProp of section 4.1 for `max_steps` steps; `constraint(params)` gives `l_e`."""
    own = dict(model.named_parameters())
    params = {name: own[name] if create_graph else own[name].detach().requires_grad_() for name in names}
    squares: dict[str, Tensor] = {}
    loss = constraint(params)
    for _ in range(max_steps):
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            for (name, param), grad in zip(list(params.items()), grads, strict=True):
                square = grad.square()
                squares[name] = beta * squares[name] + (1 - beta) * square if name in squares else square
                params[name] = param - learning_rate * grad / (squares[name] + 1e-6).sqrt()
        if not create_graph:
            params = {name: param.requires_grad_() for name, param in params.items()}
        loss = constraint(params)
    return params, loss


def whole_model_locality(model: nn.Module, params: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """Eq. 4 over the last dimension of the logits, from two forwards of the whole model; no padding."""
    with torch.no_grad():
        reference = F.log_softmax(model(**inputs).logits, -1)
    edited = F.log_softmax(functional_call(model, dict(params), (), dict(inputs)).logits, -1)
    return F.kl_div(edited, reference, reduction="none", log_target=True).sum(-1).mean()
