"""A weight file is held to its word before a tensor of it is used."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import pytest
import safetensors.torch
import torch
from hub_material import TinyNet, tiny_checkpoint, tiny_network
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_expm import checkpoints
from neural_expm.errors import CheckpointError
from neural_expm.hub.folder import write_folder
from neural_expm.safetensors_header import MAX_HEADER_BYTES, read_header

CONFIG = {
    "format": 1,
    "name": "tiny",
    "function": "expm",
    "family": "equivariant",
    "network": {"products": 2},
}


def file_of(tensors: dict[str, torch.Tensor] | None = None, **changes: object) -> bytes:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    tensors = tiny_network().state_dict() if tensors is None else tensors
    return safetensors.torch.save(tensors, metadata={"config": json.dumps(config)})


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(**changes: object) -> dict:
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


def load(content: bytes) -> torch.nn.Module:
    return checkpoints.build(*checkpoints.parse(content, "tiny"), "tiny")


def test_a_sound_file_loads():
    assert isinstance(load(file_of()), TinyNet)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "header of 0 bytes"),
        (b"\x08", "header"),
        (struct.pack("<Q", 2**62), f"header of {2**62} bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}" * MAX_HEADER_BYTES, "allowed"),
        (with_header(b"[]"), "expected an object"),
        (with_header(b'{"a": 1, "a": 1}'), "repeats a key"),
        (with_header(b"[" * 50_000), "nested too deeply|Expecting"),
        (with_header({"__metadata__": {"config": 1}}), "strings"),
        (with_header({"t": 1}), "not described"),
        (with_header(described(dtype="C64"), bytes(8)), "dtype"),
        (with_header(described(dtype=[]), bytes(8)), "dtype"),
        (with_header(described(shape=[-2]), bytes(8)), "shape"),
        (with_header(described(shape=[True, 2]), bytes(8)), "shape"),
        (with_header(described(shape=[2**47, 2**47]), bytes(8)), "does not take"),
        (with_header(described(shape=[0] * 9, data_offsets=[0, 0])), "shape"),
        (with_header(described(data_offsets=[0, 2**40], shape=[2**38]), bytes(8)), "the file holds 8"),
        (with_header(described(data_offsets=[8, 16]), bytes(16)), "gap or overlap"),
        (with_header(described(data_offsets=[8, 0]), bytes(8)), "does not take"),
        (with_header(described(), bytes(9)), "the file holds 9"),
        (with_header({"a": described()["t"], "b": described()["t"]}, bytes(8)), "gap or overlap"),
    ],
)
def test_headers_that_lie(content, says):
    with pytest.raises(ValueError, match=says):
        read_header(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(content)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_never_escape_as_another_error(content):
    with pytest.raises(CheckpointError):
        checkpoints.parse(content, "x")


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(deadline=None, max_examples=200)
def test_one_changed_byte_is_an_error_of_ours_or_other_weights(position, value):
    content = bytearray(file_of())
    content[position % len(content)] = value
    with suppress(CheckpointError):
        load(bytes(content))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, r'its configuration is \{"format": 2'),
        ({"format": True}, r'its configuration is \{"format": true'),
        ({"function": "logm"}, "logm.*expected .* a function of .*expm"),
        ({"function": None}, "expected .* the keys"),
        ({"network": []}, "expected .* 'network': 'dict'"),
        ({"name": 5}, "expected .* 'name': 'str'"),
        ({"surprise": 1}, "expected .* the keys"),
        ({"family": "unknown"}, "no network family 'unknown'"),
    ],
)
def test_configuration_follows_its_schema(changes, says):
    with pytest.raises(CheckpointError, match=says):
        load(file_of(**changes))


@pytest.mark.parametrize(
    "network", [{}, {"products": 0}, {"products": 10**9}, {"products": "2"}, {"heads": 2}]
)
def test_absurd_networks_are_refused(network):
    with pytest.raises(CheckpointError, match="tiny"):
        load(file_of(network=network))


def test_network_that_would_fill_the_memory_is_refused_while_it_is_built(monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_BUILD_BYTES", 64)
    with pytest.raises(CheckpointError, match="asks for more than the 64 bytes allowed"):
        load(file_of())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("readout"), r"missing \['readout'\]"),
        (lambda state: state.update(extra=torch.zeros(1)), r"unexpected \['extra'\]"),
        (lambda state: state.update(readout=torch.zeros(5, dtype=torch.float64)), r"shape \(5,\)"),
        (lambda state: state.update(readout=torch.zeros(4, dtype=torch.int64)), r"is torch\.int64"),
        (lambda state: state.update(readout=torch.full((4,), torch.nan)), "NaN"),
        (lambda state: state.update(readout=torch.full((4,), torch.inf)), "infinite"),
    ],
)
def test_tensors_must_fit_the_configuration(change, says):
    state = tiny_network().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=says):
        load(file_of(state))


def test_half_precision_storage_comes_back_in_the_dtype_of_the_module():
    stored = {key: tensor.half() for key, tensor in tiny_network().state_dict().items()}
    assert {parameter.dtype for parameter in load(file_of(stored)).parameters()} == {torch.float64}


def test_loading_leaves_the_random_numbers_alone_and_works_under_inference_mode():
    before = torch.get_rng_state()
    with torch.inference_mode():
        network = load(file_of())
    assert torch.equal(torch.get_rng_state(), before)
    A = torch.eye(2, dtype=torch.float64, requires_grad=True)
    network(A).sum().backward()
    assert A.grad is not None
    assert not any(parameter.requires_grad or parameter.is_inference() for parameter in network.parameters())


def test_record_and_file_must_speak_of_the_same_function(tmp_path):
    record, content = tiny_checkpoint()
    written = write_folder(record, content, tmp_path)
    object.__setattr__(written, "function", "sign")
    with pytest.raises(CheckpointError, match="holds 'expm' by 'equivariant', the manifest says 'sign'"):
        checkpoints.load_record(written)


def test_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    checkpoints.write_atomically(path, b"earlier")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neural_expm.checkpoints.os.replace", full)
    with pytest.raises(CheckpointError, match=r"No space left.*free space"):
        checkpoints.write_atomically(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
