"""The encoder–decoder transformer and its MLP baseline: shapes, frames, encodings, gradients, bad input."""

import copy

import pytest
import torch

from neural_expm.errors import CheckpointError, InputError
from neural_expm.networks import network_class
from neural_expm.networks.encodings import ENCODINGS, grid_positions, spectral_cues
from neural_expm.networks.frames import FRAMES
from neural_expm.networks.transformer import apply_framed, build_frame
from neural_expm.training import data
from neural_expm.training.metrics import relative_error

FRAME = {
    "raw": {"kind": "raw"},
    "expm": {"kind": "expm", "squarings": 1, "degree": 2},
    "sign": {
        "kind": "sign",
        "powers": [1, 3],
        "coefficients": [1.8, -0.65],
        "scale": 0.2,
        "steps": [0.5],
        "symmetric": True,
    },
    "sqrtm": {
        "kind": "sqrtm",
        "powers": [0, 1, 2],
        "coefficients": [0.15, 1.46, -0.64],
        "scale": 0.02,
        "steps": [0.6],
    },
}
SMALL = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "hidden": 16}
DISTRIBUTION = {"raw": "ginibre", "expm": "ginibre", "sign": "sign_symmetric", "sqrtm": "spd"}


def transformer(kind="expm", encoding="block", **changes):
    torch.manual_seed(0)
    config = {"encoding": encoding, "frame": FRAME[kind], **SMALL, **changes}
    return network_class("transformer", "expm").from_config(config)


def mlp(kind="expm", **changes):
    torch.manual_seed(0)
    return network_class("mlp", "expm").from_config(
        {"frame": FRAME[kind], "hidden": 16, "layers": 2, **changes}
    )


def matrices(kind, n=4, count=6, split="test"):
    return data.sample(DISTRIBUTION[kind], n, count, data.split_generator(split, 1)).float()


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("kind", sorted(FRAMES))
def test_one_network_takes_every_size_and_batch_shape(encoding, kind):
    net = transformer(kind, encoding)
    for n in range(2, 9):
        batch = matrices(kind, n)
        output = net(batch)
        assert output.shape == batch.shape
        assert torch.isfinite(output).all()
        torch.testing.assert_close(net(batch.view(2, 3, n, n)), output.view(2, 3, n, n))
        torch.testing.assert_close(net(batch[0]), output[0], rtol=1e-4, atol=1e-5)
    assert net(torch.zeros(0, 4, 4)).shape == (0, 4, 4)


@pytest.mark.parametrize("kind", sorted(FRAMES))
def test_the_mlp_takes_every_size(kind):
    net = mlp(kind)
    for n in (2, 5, 8):
        assert net(matrices(kind, n)).shape == (6, n, n)


@pytest.mark.parametrize(
    "net", [transformer(), transformer("sign", "spectral"), mlp()], ids=["block", "spectral", "mlp"]
)
def test_a_configuration_rebuilds_the_network(net):
    again = type(net).from_config(copy.deepcopy(net.config))
    again.load_state_dict(net.state_dict())
    batch = matrices("sign")
    assert torch.equal(again(batch), net(batch))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_entry_reaches_every_output(encoding):
    """No mask or reshaping slip: the derivative of each output by each entry is there."""
    net = transformer("raw", encoding, encoder_layers=2).double()
    jacobian = torch.autograd.functional.jacobian(net, matrices("raw", 3, 1)[0].double())
    assert (jacobian.abs() > 0).all()


@pytest.mark.parametrize("kind", sorted(FRAMES))
def test_gradients_match_finite_differences(kind):
    net = transformer(kind).double()
    batch = matrices(kind, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(net, (batch,), eps=1e-6, atol=1e-5, rtol=1e-3)


def test_the_exponential_frame_shifts_the_trace_exactly():
    net = transformer("expm").double()
    batch = matrices("expm").double()
    shift = torch.tensor(1.5, dtype=torch.float64)
    torch.testing.assert_close(net(batch + shift * torch.eye(4)), shift.exp() * net(batch), rtol=1e-9, atol=0)


def test_the_exponential_of_a_multiple_of_the_identity_is_exact():
    net = transformer("expm").double()
    expected = torch.tensor(0.7, dtype=torch.float64).exp() * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(net(0.7 * torch.eye(3).double()), expected, rtol=1e-9, atol=1e-12)
    leaf = torch.zeros(2, 3, 3, requires_grad=True)
    net.float()(leaf).sum().backward()
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize(("kind", "power"), [("sign", 0.0), ("sqrtm", 0.5)])
def test_sign_and_square_root_are_homogeneous(kind, power):
    net, batch = transformer(kind), matrices(kind)
    torch.testing.assert_close(net(1e6 * batch), 1e6**power * net(batch), rtol=2e-4, atol=2e-4)


def test_symmetric_input_gives_symmetric_signs():
    output = transformer("sign")(matrices("sign"))
    assert torch.equal(output, output.mT)


@pytest.mark.parametrize(
    ("function", "kind", "distribution"), [("sign", "sign", "sign_symmetric"), ("sqrtm", "sqrtm", "spd")]
)
def test_polishing_shrinks_a_random_error(function, kind, distribution):
    """An error that does not commute with A is the hard case: Newton–Schulz alone leaves half of it."""
    batch, truth = data.sample_pairs(function, distribution, 5, 200, data.split_generator("test", 2))
    frame = build_frame(FRAME[kind]).double()
    prepared = frame.prepare(batch)
    target = truth if prepared.shift is None else truth / prepared.shift.sqrt()
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (
        0.03
        * (noise + noise.mT)
        / noise.flatten(1).norm(dim=1)[:, None, None]
        * target.norm(dim=(1, 2))[:, None, None]
    )
    residual = (target + noise - prepared.baseline) / prepared.scale
    before = relative_error(frame.finish(prepared, residual, polish=False), truth).mean()
    after = relative_error(frame.finish(prepared, residual), truth).mean()
    assert after < 0.6 * before


def test_leaving_out_the_network_leaves_the_baseline():
    net, batch = transformer("expm"), matrices("expm")
    baseline = apply_framed(net, batch, network=False)
    truth = torch.linalg.matrix_exp(batch)
    assert relative_error(baseline, truth).mean() < 0.05
    assert not torch.equal(baseline, net(batch))


def test_positions_are_distinct_and_bounded():
    index = torch.arange(8)
    positions = grid_positions(index.repeat_interleave(8), index.repeat(8), 64)
    assert positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + 10 * torch.eye(64)
    assert distances.min() > 0.5


def test_spectral_cues_are_invariants_and_norms():
    batch = matrices("sqrtm", 5).double()
    basis = data.random_orthogonal(5, 6, data.split_generator("test", 9))
    cues, turned = spectral_cues(batch), spectral_cues(basis @ batch @ basis.mT)
    # The first five survive an orthogonal change of basis; the one- and infinity-norms need not.
    torch.testing.assert_close(cues[:, :5], turned[:, :5])
    eigenvalues = torch.linalg.eigvalsh(batch)
    torch.testing.assert_close(cues[:, 2], (eigenvalues**3).mean(-1))


@pytest.mark.parametrize("shape", [(9, 9), (2, 3), (4,), (0, 0)])
def test_shapes_outside_the_network_are_refused(shape):
    with pytest.raises(InputError, match="1 ≤ n ≤ 8"):
        transformer()(torch.zeros(shape))


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "fourier"},
        {"frame": {"kind": "logm"}},
        {"frame": {"kind": "expm", "order": 3}},
        {"width": 0},
        {"width": "128"},
        {"heads": 3},
        {"depth": 4},
        {"hidden": 10**9},
        {"encoder_layers": True},
    ],
    ids=str,
)
def test_bad_configurations_are_checkpoint_errors(change):
    with pytest.raises(CheckpointError):
        transformer(**change)


def test_a_missing_key_is_a_checkpoint_error():
    with pytest.raises(CheckpointError, match="frame"):
        network_class("transformer", "expm").from_config({"encoding": "block"})
