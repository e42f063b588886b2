import hashlib
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from patches.patch_checks import BITS, bits

from editable_hf.patches.encoding import ENCODINGS, _inflate, digest, fingerprint, rounding_error

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def any_bits(dtype, count, seed, finite):
    """Tensors of every kind of value: -0.0, denormal, infinite and NaN of any payload, unless `finite`."""
    generator = np.random.default_rng(seed)
    width = torch.empty(0, dtype=dtype).element_size()
    tensor = torch.from_numpy(generator.integers(0, 256, count * width, dtype=np.uint8)).view(dtype)
    specials = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), float("inf"), 1e-45, 1.0], dtype=dtype)
    tensor = torch.cat([tensor, specials])[torch.from_numpy(generator.permutation(count + len(specials)))]
    # Halved, so that no difference of two overflows.
    return torch.where(tensor.isfinite(), tensor / 2, -0.0) if finite else tensor


@every_dtype
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_xor_is_exact_for_every_bit_pattern(dtype, count, seed):
    old, new = any_bits(dtype, count, seed, False), any_bits(dtype, count, seed + 1, False)
    streams = ENCODINGS["xor"].encode(old, new)
    assert torch.equal(bits(ENCODINGS["xor"].apply(streams, old)), bits(new))
    assert torch.equal(bits(ENCODINGS["xor"].revert(streams, new)), bits(old))


@every_dtype
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_bf16_is_taken_back_bit_for_bit(dtype, count, seed):
    old, new = any_bits(dtype, count, seed, True), any_bits(dtype, count, seed + 1, True)
    codec = ENCODINGS["bf16"]
    try:
        streams = codec.encode(old, new)
    except ValueError as error:  # float16 and float64 reach bounds that bfloat16 steps cross by rounding
        assert "finite" in str(error)
        return
    edited = codec.apply(streams, old)
    assert torch.equal(bits(codec.revert(streams, edited)), bits(old))


@every_dtype
def test_bf16_adds_the_difference_rounded_to_bfloat16(dtype):
    old = torch.linspace(-1, 1, 101, dtype=torch.float64).to(dtype)
    new = (old.double() + torch.linspace(-3e-3, 2e-3, 101, dtype=torch.float64)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    step = (new.to(wide) - old.to(wide)).bfloat16()
    expected = (old.to(wide) + step.to(wide)).to(dtype)
    codec = ENCODINGS["bf16"]
    edited = codec.apply(codec.encode(old, new), old)
    assert torch.equal(bits(edited), bits(expected))
    # bfloat16 keeps 8 bits of a step.
    largest, lost, moved = rounding_error(old, new, edited)
    spacing = torch.finfo(dtype).eps
    assert largest <= 3e-3 * 2**-8 + spacing and lost <= moved * 2**-14 + 101 * spacing**2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bf16_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match="finite values.*use encoding 'xor'"):
        ENCODINGS["bf16"].encode(torch.zeros(2), torch.tensor([0.0, value]))


def test_bf16_refuses_a_step_that_overflows():
    largest = torch.tensor([torch.finfo(torch.float32).max])
    with pytest.raises(ValueError, match="finite"):
        ENCODINGS["bf16"].encode(-largest, largest)


def test_sizes_of_a_typical_edit():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(100_000, generator=generator) * 512**-0.5
    new = old + 1e-3 * torch.randn(100_000, generator=generator)
    sizes = {name: sum(plane.size for plane in codec.encode(old, new).values()) for name, codec in ENCODINGS.items()}
    assert sizes["xor"] < 0.76 * 400_000 and sizes["bf16"] < 0.4 * 400_000


def test_noise_is_kept_raw_and_equal_bytes_are_compressed():
    generator = torch.Generator().manual_seed(0)
    old = torch.rand(4096, generator=generator) + 1
    streams = ENCODINGS["xor"].encode(old, torch.rand(4096, generator=generator) + 1)
    sizes = [streams[f"xor.{number}"].size for number in range(4)]
    assert sizes[:2] == [4096, 4096]  # mantissas
    assert sizes[3] < 50  # signs and exponents are the same


@pytest.mark.parametrize("plane", [b"", b"\0" * 9, zlib.compress(b"ab"), zlib.compress(b"ab" * 40)[:-1]])
def test_a_wrong_plane_is_an_error(plane):
    with pytest.raises(zlib.error):
        _inflate(np.frombuffer(plane, np.uint8), 80)


def test_a_bomb_is_not_unpacked():
    bomb = np.frombuffer(zlib.compress(b"\0" * 50_000_000), np.uint8)
    tracemalloc.start()
    with pytest.raises(zlib.error, match="expected 100000 bytes"):
        _inflate(bomb, 100_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_sees_every_bit_the_dtype_and_the_shape(dtype):
    tensor = torch.zeros(2, 3, dtype=dtype)
    assert digest(tensor) == digest(tensor.clone().t().contiguous().t())
    flipped = tensor.clone()
    flipped.view(BITS[dtype.itemsize])[1, 2] = 1
    others = [flipped, -tensor, tensor.view(3, 2), tensor.view(6), tensor.to(torch.float8_e5m2)]
    assert len({digest(each) for each in (tensor, *others)}) == 6


def test_digest_and_fingerprint_are_what_the_format_says():
    value = digest(torch.tensor([[1.0, -0.0]]))
    raw = b"float32 [1, 2]\n" + np.array([1.0, -0.0], "<f4").tobytes()
    assert value == hashlib.sha256(raw).hexdigest()
    assert fingerprint({"b": "2", "a": "1"}) == hashlib.sha256(b"a\x001\nb\x002\n").hexdigest()
