import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patches.patch_checks import BITS, LAYER, all_bits, made_up_result, same_bits
from transformers import AutoModelForImageClassification, AutoModelForSeq2SeqLM

from editable_hf import EditorConfig, edited, select_parameters
from editable_hf.patches import Patch, applied_patches, apply_patches, revert_patches

# Overlapping and disjoint ones, tied embeddings and a whole model.
MARIAN_LAYERS = [LAYER, "model.decoder.layers.1.fc1", "model.decoder.layers.0", "model.shared", "*"]
RESNET_LAYERS = ["resnet.encoder.stages.1", "classifier", "resnet.embedder", "*"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def made_patch(model, layers, seed, encoding):
    result = made_up_result(model, layers, seed, 0.03)  # visible in bfloat16
    return Patch.from_edit(model, result, request=seed, editor=EditorConfig(), layers=layers, encoding=encoding)


def with_negative_zeros(model):
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] = -0.0
    return model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["marian", "resnet"])
@given(data=st.data())
def test_any_stack_is_taken_back_bit_for_bit(marian_template, resnet_template, name, dtype, data):
    template, choices = (marian_template, MARIAN_LAYERS) if name == "marian" else (resnet_template, RESNET_LAYERS)
    model = with_negative_zeros(copy.deepcopy(template).to(dtype))
    states, stack = [all_bits(model)], []
    for seed in range(data.draw(st.integers(1, 6))):
        if stack and data.draw(st.booleans()):
            count = data.draw(st.integers(1, len(stack)))
            given_patches = data.draw(st.permutations(stack[-count:])) if data.draw(st.booleans()) else count
            revert_patches(model, given_patches)
            del stack[-count:], states[-count:]
        else:
            layers, encoding = data.draw(st.sampled_from(choices)), data.draw(st.sampled_from(["xor", "bf16"]))
            patch = made_patch(model, layers, seed, encoding)
            touched = set(select_parameters(model, layers))
            assert set(patch.tensors) <= touched
            apply_patches(model, patch)
            now = all_bits(model)
            changed = {key for key in now if not torch.equal(now[key], states[-1][key])}
            assert changed == set(patch.tensors)
            stack.append(patch)
            states.append(now)
        assert same_bits(all_bits(model), states[-1])
        assert applied_patches(model) == [patch.fingerprint for patch in stack]
    revert_patches(model, len(stack))
    assert same_bits(all_bits(model), states[0])
    assert applied_patches(model) == []
    assert "editable_patches" not in model.config.to_dict()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_infinity_and_negative_zero_come_and_go(tiny_marian, dtype):
    tiny_marian.to(dtype)
    weight = tiny_marian.get_parameter(f"{LAYER}.fc1.weight")
    odd = torch.tensor([float("nan"), -float("nan"), float("inf"), -0.0, 0.0], dtype=dtype)
    with torch.no_grad():
        weight.view(-1)[:5] = odd
        weight.view(-1).view(BITS[weight.element_size()])[0] += 1  # a NaN with a payload of its own
    before = all_bits(tiny_marian)
    result = made_up_result(tiny_marian, LAYER)
    result.params[f"{LAYER}.fc1.weight"].view(-1)[:5] = odd.flip(0)
    patch = Patch.from_edit(tiny_marian, result, request=None, editor=EditorConfig(), layers=LAYER)
    with edited(tiny_marian, result):
        expected = all_bits(tiny_marian)
    assert same_bits(all_bits(apply_patches(tiny_marian, patch)), expected)
    assert same_bits(all_bits(revert_patches(tiny_marian)), before)


@pytest.mark.parametrize("name", ["tiny_marian", "tiny_resnet"])
def test_patched_checkpoint_knows_its_patches(request, make_patch, tmp_path, name):
    model = request.getfixturevalue(name)
    auto = AutoModelForSeq2SeqLM if name == "tiny_marian" else AutoModelForImageClassification
    layers = MARIAN_LAYERS if name == "tiny_marian" else RESNET_LAYERS
    model.save_pretrained(tmp_path / "base")
    base = all_bits(model)
    for number in range(2):
        patch = make_patch(model, layers[number], seed=number, encoding=("xor", "bf16")[number])
        patch.save_pretrained(tmp_path / f"patch{number}")
        apply_patches(model, patch)
    folders = [tmp_path / "patch0", str(tmp_path / "patch1")]
    model.save_pretrained(tmp_path / "patched")

    loaded = auto.from_pretrained(tmp_path / "patched")
    assert applied_patches(loaded) == applied_patches(model) == [Patch.from_pretrained(f).fingerprint for f in folders]
    with pytest.raises(ValueError, match="carries .* \\(number 1 of 2\\)"):
        apply_patches(loaded, folders[:1])
    with pytest.raises(ValueError, match="applied before this model was loaded.*give them"):
        revert_patches(loaded)
    with pytest.raises(ValueError, match="Only the last patches"):
        revert_patches(loaded, folders[0])
    assert same_bits(all_bits(revert_patches(loaded, folders)), base)
    assert same_bits(all_bits(apply_patches(auto.from_pretrained(tmp_path / "base"), folders)), all_bits(model))


def test_a_copied_model_has_a_stack_of_its_own(tiny_marian, make_patch):
    before = all_bits(tiny_marian)
    apply_patches(tiny_marian, make_patch(tiny_marian))
    twin = copy.deepcopy(tiny_marian)
    assert same_bits(all_bits(revert_patches(tiny_marian)), before)
    assert len(applied_patches(twin)) == 1
    assert same_bits(all_bits(revert_patches(twin)), before)


def refused(model, match, patches):
    """Asserts that `patches` are refused and that nothing of `model` changed."""
    before, stack = all_bits(model), applied_patches(model)
    with pytest.raises(ValueError, match=match):
        apply_patches(model, patches)
    assert same_bits(all_bits(model), before) and applied_patches(model) == stack


def test_another_base_is_refused(tiny_marian, tiny_resnet, make_patch):
    patch = make_patch(tiny_marian, base_model="me/translator")
    other = copy.deepcopy(tiny_marian)
    with torch.no_grad():
        other.get_parameter(f"{LAYER}.fc1.weight")[0, 0] += 1e-3
    refused(other, "other weights: 1 of the .* differ; expected sha256 .*fc1.weight'.*found .*me/translator", patch)
    refused(tiny_resnet, "made for MarianMTModel of me/translator .*has no such parameter", patch)
    for dtype in ("bfloat16", "float16"):
        converted = copy.deepcopy(tiny_marian).to(getattr(torch, dtype))
        refused(converted, f"as float32 .*has {dtype} .*`dtype='float32'`", patch)


def test_an_applied_patch_is_refused(tiny_marian, make_patch):
    patch = make_patch(tiny_marian)
    refused(tiny_marian, "not applied yet", [patch, patch])
    apply_patches(tiny_marian, patch)
    refused(tiny_marian, "not applied yet.*leave it out", patch)
    del tiny_marian.config.editable_patches
    refused(tiny_marian, "it is applied already, though the model's config does not say so", patch)


def test_order_is_kept(tiny_marian, make_patch):
    base = copy.deepcopy(tiny_marian)
    patches = []
    for seed in range(3):
        patches.append(make_patch(tiny_marian, seed=seed, layers=("model.shared", LAYER, "model.encoder")[seed]))
        apply_patches(tiny_marian, patches[-1])
    first, second, third = patches
    # Their tensors are all different: only the parents tell the order.
    refused(base, f"on top of patch {first.fingerprint[:12]}, but the patches below it are: none", second)
    refused(base, f"on top of patch {second.fingerprint[:12]}", [first, third])
    for wrong in (first, [first, second], [third, first]):
        with pytest.raises(ValueError, match="Only the last patches.*Revert those above first"):
            revert_patches(tiny_marian, wrong)
    assert len(applied_patches(tiny_marian)) == 3
    revert_patches(tiny_marian, [second, third])
    assert applied_patches(tiny_marian) == [first.fingerprint]
    with pytest.raises(ValueError, match="between 0 and 1 patches.*got 2"):
        revert_patches(tiny_marian, 2)
    with pytest.raises(ValueError, match="no patch is applied"):
        revert_patches(base, first)


def test_independent_patches_go_together(tiny_marian, make_patch):
    base = all_bits(tiny_marian)
    patches = [make_patch(tiny_marian, layers) for layers in ("model.shared", LAYER)]
    apply_patches(tiny_marian, patches[::-1])
    revert_patches(tiny_marian, 2)
    assert same_bits(all_bits(tiny_marian), base)
    overlapping = make_patch(tiny_marian, seed=5)
    apply_patches(tiny_marian, patches)
    refused(tiny_marian, "applied touch the same tensors: revert those", overlapping)


def test_a_model_that_changed_since_is_refused(tiny_marian, make_patch):
    apply_patches(tiny_marian, make_patch(tiny_marian))
    with torch.no_grad():
        tiny_marian.get_parameter(f"{LAYER}.fc1.bias")[0] += 1
    changed = all_bits(tiny_marian)
    message = "says that 1 patches are applied.*1 of the .* not as they left them, '.*fc1.bias'.*forget its patches"
    for action in (
        lambda: applied_patches(tiny_marian),
        lambda: revert_patches(tiny_marian),
        lambda: make_patch(tiny_marian, seed=1),
        lambda: apply_patches(tiny_marian, []),
    ):
        with pytest.raises(ValueError, match=message):
            action()
    assert same_bits(all_bits(tiny_marian), changed)
    del tiny_marian.config.editable_patches
    apply_patches(tiny_marian, make_patch(tiny_marian, seed=1))


def test_a_wrapped_model_is_refused(tiny_marian, make_patch):
    with pytest.raises(TypeError, match="got DataParallel; unwrap the model"):
        apply_patches(torch.nn.DataParallel(tiny_marian), make_patch(tiny_marian))


def test_an_offloaded_model_is_refused(tiny_marian, make_patch):
    patch = make_patch(tiny_marian)
    with pytest.raises(ValueError, match="offloaded"):
        apply_patches(tiny_marian.to("meta"), patch)


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_restores_the_model(tiny_marian, make_patch, monkeypatch, failure):
    apply_patches(tiny_marian, make_patch(tiny_marian))
    patch = make_patch(tiny_marian, seed=1)
    before, stack = all_bits(tiny_marian), applied_patches(tiny_marian)
    copy_, calls = torch.Tensor.copy_, []

    def fails_once(tensor, *args, **options):
        calls.append(tensor)
        if len(calls) == 5:
            raise failure
        return copy_(tensor, *args, **options)

    for action in (lambda: apply_patches(tiny_marian, patch), lambda: revert_patches(tiny_marian)):
        calls.clear()
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "copy_", fails_once)
            with pytest.raises(type(failure)):
                action()
        assert len(calls) > 5
        assert same_bits(all_bits(tiny_marian), before) and applied_patches(tiny_marian) == stack


def test_a_bad_patch_among_good_ones_changes_nothing(tiny_marian, make_patch):
    good = make_patch(tiny_marian, "model.shared")
    bad = make_patch(tiny_marian)
    name = next(iter(bad.tensors))
    lies = replace(bad, tensors={**bad.tensors, name: replace(bad.tensors[name], after="0" * 64)})
    refused(tiny_marian, "does not give what it says: expected sha256 000000000000", [good, lies])


def test_parameters_that_share_memory_are_refused(tiny_marian, make_patch):
    layer = tiny_marian.model.decoder.layers[1]
    layer.fc1.bias.data = layer.fc2.weight.data.view(-1)[: layer.fc1.bias.numel()]
    before, patch = all_bits(tiny_marian), make_patch(tiny_marian)
    with pytest.raises(RuntimeError, match="share memory must be tied"):
        apply_patches(tiny_marian, patch)
    assert same_bits(all_bits(tiny_marian), before) and applied_patches(tiny_marian) == []


@pytest.mark.gpu
def test_a_patch_is_the_same_on_every_device(tiny_marian, make_patch):
    before = all_bits(tiny_marian)
    patches = [make_patch(tiny_marian, encoding=encoding, seed=7) for encoding in ("xor", "bf16")]
    there = copy.deepcopy(tiny_marian).cuda()
    for patch in patches:
        assert make_patch(there, encoding=patch.encoding, seed=7).base_fingerprint == patch.base_fingerprint
        apply_patches(there, patch)
        apply_patches(tiny_marian, patch)
        assert same_bits(all_bits(there), all_bits(tiny_marian))
        assert same_bits(all_bits(revert_patches(there)), before)
        revert_patches(tiny_marian)
