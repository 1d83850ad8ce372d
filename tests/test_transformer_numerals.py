"""The numeral encodings P10, P1000, B1999 and FP15: exact round trips, and a network that reads them."""

import pytest
import torch

from neural_expm.errors import InputError
from neural_expm.networks import network_class
from neural_expm.networks.numerals import FP15_COUNT, FP15_MANTISSAS, NUMERALS
from neural_expm.training import data

#: Numbers whose digits are easily got wrong: zeros, carries into the next power of ten, ties, both signs.
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    9.994,
    9.996,
    999.4,
    999.6,
    0.0999501,
    1e5,
    -1e-5,
    12.25,
    3.14159,
    -2.71828,
    1e-8,
]
SCHEMES = sorted(NUMERALS)


def rounded(numbers):
    return torch.tensor([float(f"{x:.2e}") for x in numbers.tolist()], dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEMES)
def test_decoding_gives_the_number_with_three_digits(name):
    generator = torch.Generator().manual_seed(0)
    size, sign = torch.rand(2, 3000, generator=generator, dtype=torch.float64)
    wide = (sign - 0.5).sign() * 10 ** (11 * size - 7)
    for numbers in (wide, torch.tensor(EDGES, dtype=torch.float64)):
        assert torch.equal(NUMERALS[name].decode(NUMERALS[name].encode(numbers)), rounded(numbers))


@pytest.mark.parametrize("name", SCHEMES)
def test_tokens_survive_the_round_trip(name):
    """Every mantissa and sign, at the ends and in the middle of the exponents that the scheme writes."""
    mantissas = torch.arange(100, 1000, dtype=torch.float64)
    exponents = (-10, -2, 5) if name == "fp15" else (-100, -2, 100)
    values = [
        torch.tensor([float(f"{int(m)}e{e}") for m in mantissas], dtype=torch.float64) for e in exponents
    ]
    numbers = torch.cat([*values, *(-v for v in values), torch.zeros(1, dtype=torch.float64)])
    tokens = NUMERALS[name].encode(numbers)
    assert torch.equal(NUMERALS[name].decode(tokens), numbers)
    assert torch.equal(NUMERALS[name].encode(NUMERALS[name].decode(tokens)), tokens)
    assert len(torch.unique(tokens, dim=0)) == len(numbers), "different numbers have different tokens"
    for slot, size in enumerate(NUMERALS[name].vocabularies):
        assert tokens[:, slot].min() >= 0
        assert tokens[:, slot].max() < size


def test_the_token_counts_are_those_of_the_paper():
    assert [len(NUMERALS[name].vocabularies) for name in ("p10", "p1000", "b1999", "fp15")] == [5, 3, 2, 1]
    assert NUMERALS["b1999"].vocabularies[0] == 1999
    assert NUMERALS["fp15"].vocabularies[0] == FP15_MANTISSAS * FP15_COUNT == 28_816


def test_numbers_too_small_become_zero():
    tiny = torch.tensor([1e-12, -1e-12], dtype=torch.float64)
    assert torch.equal(
        NUMERALS["fp15"].decode(NUMERALS["fp15"].encode(tiny)), torch.zeros(2, dtype=torch.float64)
    )
    assert torch.equal(NUMERALS["p10"].decode(NUMERALS["p10"].encode(tiny)), tiny)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_numbers_that_cannot_be_written_are_refused(name, value):
    with pytest.raises(InputError, match=r"token encoding|too large"):
        NUMERALS[name].encode(torch.tensor([value], dtype=torch.float64))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_network_reads_the_tokens_and_trains(name):
    torch.manual_seed(0)
    frame = {"kind": "raw", "symmetric": True}
    small = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "hidden": 16}
    net = network_class("transformer", "sqrtm").from_config({"encoding": name, "frame": frame, **small})
    matrices = data.sample("spd", 3, 4, data.split_generator("test", 0)).float()
    output = net(matrices)
    assert output.shape == matrices.shape
    assert torch.equal(net(matrices * (1 + 1e-7)), output), "what rounds to the same digits is the same input"
    output.square().sum().backward()
    assert all(table.weight.grad.abs().sum() > 0 for table in net.encoding.tables)
