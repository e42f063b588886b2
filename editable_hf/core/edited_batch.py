"""Many edits in one call of a model: each group of rows of a batch is computed with the parameters of an edit.

A batch of `E * S` rows, those of the first edit first, goes through the model as it is. Where the model uses an edited
parameter it finds the values of all edits, stacked, and what it does with them (a linear layer, say) is done for each
group of rows with its own: one batched product instead of `E`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from editable_hf.core.editing import EditResult
from editable_hf.core.layer_norm import layer_norm
from editable_hf.seams.torch_seam import ParameterSlots


class CannotBatchEdits(TypeError):
    """The model uses an edited parameter in a way that cannot be told apart by rows.

    Args:
        name: Of the parameter.
        why: How it is used.
    """

    def __init__(self, name: str, why: str):
        super().__init__(
            f"`{name}` cannot be edited in a batch of edits, because {why}; apply each edit with `edited` instead."
        )


@contextmanager
def edited_batch(model: nn.Module, edits: Sequence[EditResult | Mapping[str, Tensor]]) -> Iterator[nn.Module]:
    """Applies several edits for the duration of the block, each to its own rows of every batch.

    A forward or `generate` on `len(edits) * S` rows gives those of the first edit, then those of the second, and so
    on. Beams and returned sequences keep the rows of an edit together, so they need nothing. Sampling draws the
    numbers that the same rows would get on one edited model.

    Edited parameters may be those of linear layers, embeddings, convolutions over images, batch (in eval mode), layer
    and RMS normalization, and what is added to or multiplied with rows, wherever the model has them, tied ones too.
    The first dimension of what they work on must be the batch. No gradient reaches the parameters.

    Args:
        model: The model that was edited; it holds its own parameters again afterwards, also after an error.
        edits: [`EditResult`]s or their `params`, all of the same parameters.

    Yields:
        The same model. Using it raises [`CannotBatchEdits`] where an edited parameter is used in another way.

    Raises:
        ValueError: If there is no edit, or they are not of the same parameters of this model.

    Example:
        >>> with edited_batch(model, [first, second]):  # doctest: +SKIP
        ...     rows = model.generate(input_ids.repeat(2, 1), attention_mask=attention_mask.repeat(2, 1))
    """
    params = [each.params if isinstance(each, EditResult) else each for each in edits]
    own = dict(model.named_parameters())
    if not params or any(each.keys() != params[0].keys() for each in params) or not params[0].keys() <= own.keys():
        raise ValueError(
            f"Expected one edit or more, all of the same parameters of {type(model).__name__}, but got {len(params)} "
            f"of {', '.join(sorted({', '.join(list(each)[:3]) for each in params})) or 'none'}."
        )
    batch = EditGroups(len(params))
    stacked = batch.tell_apart({name: torch.stack([each[name].detach() for each in params]) for name in params[0]})
    with batch.watching(model), ParameterSlots(model).holding(stacked):
        yield model


class EditGroups:
    """What tells the rows of a batch from other tensors: the inputs of the call that runs.

    Args:
        count: How many edits.

    Attributes:
        rows: The model's rows, `None` before its first call.
        inputs: By module that was called; kept, so that nothing else can take the place of their storages.
    """

    def __init__(self, count: int):
        self.count, self.rows = count, None
        self.inputs: dict[nn.Module, list[Tensor]] = {}

    def tell_apart(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters by qualified name, `(num_edits, *shape)` each, as tensors of that shape; with their graph."""
        return {name: _stacked(value, name, self) for name, value in values.items()}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Within the block the inputs of `model` are noted at every call."""
        # `generate` calls the encoder by itself.
        called = [model, *([model.get_encoder()] if hasattr(model, "get_encoder") else [])]
        hooks = [module.register_forward_pre_hook(self.note_inputs, with_kwargs=True) for module in called]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def note_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the forward of the model."""
        named = [kwargs[name] for name in _INPUTS if kwargs.get(name) is not None]
        tensors = [value for value in (*named, *args) if isinstance(value, Tensor)]
        if tensors:
            self.rows = len(tensors[0])
            self.inputs[module] = tensors

    def holds(self, ids: Tensor) -> bool:
        """Whether these are inputs of the model, or a view of them."""
        given = (value for tensors in self.inputs.values() for value in tensors)
        return ids.untyped_storage().data_ptr() in {value.untyped_storage().data_ptr() for value in given}

    def split(self, rows: Tensor, name: str) -> Tensor:
        """Rows by edit, `(num_edits, rows of each, ...)`.

        Raises:
            CannotBatchEdits: If they are not the model's rows, or the positions of these one after another.
        """
        known = rows.ndim > 0 and self.rows is not None
        if known and (len(rows) == self.rows or (rows.ndim == 2 and len(rows) % self.rows == 0)):
            if self.rows % self.count == 0:
                return rows.unflatten(0, (self.count, -1))
        raise CannotBatchEdits(
            name,
            f"it is used on a tensor of shape {tuple(rows.shape)}, while {self.count} edits share {self.rows} rows",
        )


# The inputs of a model that have a row for each example, those that decide about its edited layers first.
_INPUTS = ("decoder_input_ids", "decoder_inputs_embeds", "input_ids", "inputs_embeds", "pixel_values")


class _Stacked(Tensor):
    """The values of one parameter after each edit, `(num_edits, *shape)`, which acts as one of that shape.

    Attributes:
        values: The same as an ordinary tensor.
        qualified_name: Of the parameter.
        batch: What is known of the rows.
    """

    values: Tensor
    qualified_name: str
    batch: EditGroups

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, _Stacked))
        if func in _READ:
            return func(*(value.values if isinstance(value, _Stacked) else value for value in args), **kwargs)
        if func is Tensor.shape.__get__:
            return first.values.shape[1:]
        if func in _BY_GROUP:
            return _BY_GROUP[func](first.batch, *args, **kwargs)
        others = [value for value in args if isinstance(value, Tensor) and value is not first and value.ndim]
        if func in _ELEMENTWISE | _CASTS and not others:
            plain = (value.values if value is first else value for value in args)
            return _stacked(func(*plain, **kwargs), first.qualified_name, first.batch)
        if func in _ELEMENTWISE and not kwargs and len(others) == 1 and not isinstance(others[0], _Stacked):
            return _elementwise(func, first.batch, args)
        raise CannotBatchEdits(first.qualified_name, f"`{getattr(func, '__name__', func)}` uses it")


def _stacked(values: Tensor, name: str, batch: EditGroups) -> _Stacked:
    tensor = values.as_subclass(_Stacked)
    tensor.values, tensor.qualified_name, tensor.batch = values, name, batch
    return tensor


def _name(*params: Any) -> str:
    return next(param.qualified_name for param in params if isinstance(param, _Stacked))


def _each(param: Tensor, count: int) -> Tensor:
    """The parameter of each edit, `(num_edits, *shape)`, also of one that is not edited."""
    return param.values if isinstance(param, _Stacked) else param.expand(count, *param.shape)


def _linear(batch: EditGroups, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = batch.split(input, _name(weight, bias)).flatten(1, -2)  # (num_edits, rows, in_features)
    columns = _each(weight, batch.count).transpose(1, 2)
    if bias is None:
        output = torch.bmm(rows, columns)
    else:
        output = torch.baddbmm(_each(bias, batch.count).unsqueeze(1), rows, columns)
    return output.reshape(*input.shape[:-1], -1)


def _addmm(batch: EditGroups, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """What GPT-2 has for a linear layer; its weight is the other way round."""
    rows = batch.split(input, _name(bias, weight))
    return torch.baddbmm(_each(bias, batch.count).unsqueeze(1), rows, _each(weight, batch.count)).flatten(0, 1)


def _embedding(batch: EditGroups, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    # What follows (padding index, largest norm) concerns gradients, but for the norm, which changes the weights.
    if kwargs.get("max_norm", args[1] if len(args) > 1 else None) is not None:
        raise CannotBatchEdits(weight.qualified_name, "it has a `max_norm`")
    if not batch.holds(input):  # positions, say, are those of all rows
        raise CannotBatchEdits(weight.qualified_name, "it embeds something else than the model's inputs")
    ids = batch.split(input, weight.qualified_name)
    starts = torch.arange(batch.count, device=ids.device) * weight.values.shape[1]
    ids = ids + starts.view(-1, *[1] * (ids.ndim - 1))
    return F.embedding(ids.flatten(0, 1), weight.values.flatten(0, 1))


def _affine(batch: EditGroups, rows: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int) -> Tensor:
    """`weight * rows + bias` over the `dims` last dimensions, or over the channels of images if it is 0."""
    groups = batch.split(rows, _name(weight, bias))

    def fit(param: Tensor) -> Tensor:
        each = _each(param, batch.count)
        if dims == 0:
            return each.view(batch.count, 1, -1, *[1] * (groups.ndim - 3))
        return each.view(batch.count, *[1] * (groups.ndim - 1 - dims), *each.shape[1:])

    if weight is not None and bias is not None:
        groups = torch.addcmul(fit(bias), groups, fit(weight))
    else:
        groups = groups + fit(bias) if weight is None else groups * fit(weight)
    return groups.flatten(0, 1)


def _layer_norm(
    batch: EditGroups,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    # As torch itself does, half precision is rounded once, at the end.
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    if len(normalized_shape) == 1:
        rows = layer_norm(wide, None, None, eps)  # edits that are differentiated differentiate it twice
    else:
        rows = F.layer_norm(wide, normalized_shape, eps=eps)
    return _affine(batch, rows, weight, bias, len(normalized_shape)).to(input.dtype)


def _rms_norm(
    batch: EditGroups, input: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    rows = F.rms_norm(wide, normalized_shape, eps=eps)
    return _affine(batch, rows, weight, None, len(normalized_shape)).to(input.dtype)


def _batch_norm(
    batch: EditGroups,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        raise CannotBatchEdits(_name(weight, bias), "batch normalization is in train mode (call `model.eval()`)")
    rows = F.batch_norm(input, running_mean, running_var, momentum=momentum, eps=eps)
    return _affine(batch, rows, weight, bias, 0)


def _conv2d(
    batch: EditGroups,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    images = batch.split(input, _name(weight, bias)).transpose(0, 1).flatten(1, 2)
    kernels = _each(weight, batch.count).flatten(0, 1)
    biases = None if bias is None else _each(bias, batch.count).flatten()
    output = F.conv2d(images, kernels, biases, stride, padding, dilation, groups * batch.count)
    return output.unflatten(1, (batch.count, -1)).transpose(0, 1).flatten(0, 1)


def _elementwise(func: Callable, batch: EditGroups, args: Sequence[Any]) -> Tensor:
    """A sum or product of rows and a parameter that each row gets: of fewer dimensions, or with 1 in the first."""
    (param,) = (value for value in args if isinstance(value, _Stacked))
    (rows,) = (value for value in args if isinstance(value, Tensor) and value is not param and value.ndim)
    groups, shape = batch.split(rows, param.qualified_name), param.values.shape[1:]
    if len(shape) > rows.ndim or (len(shape) == rows.ndim and shape[0] != 1):
        why = f"a tensor of shape {tuple(rows.shape)} meets it, which it does not treat row by row"
        raise CannotBatchEdits(param.qualified_name, why)
    each = shape if len(shape) < rows.ndim else shape[1:]
    fitted = param.values.view(batch.count, *[1] * (rows.ndim - len(each)), *each)
    arguments = (fitted if value is param else groups if value is rows else value for value in args)
    return func(*arguments).flatten(0, 1)


_BY_GROUP = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.batch_norm: _batch_norm,
    F.conv2d: _conv2d,
}
_ELEMENTWISE = {
    *(Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul),
    *(Tensor.add, Tensor.__add__, Tensor.__radd__, torch.add),
}
_CASTS = {Tensor.to, Tensor.float}
# What only describes a tensor, which is the same for all edits.
_READ = {
    *(Tensor.dtype.__get__, Tensor.device.__get__, Tensor.requires_grad.__get__, Tensor.is_cuda.__get__),
    *(Tensor.is_floating_point, Tensor.layout.__get__, Tensor.is_meta.__get__, Tensor.is_complex),
}
