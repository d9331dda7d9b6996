"""Files that lie, are damaged, or carry code: refused with a ValueError, nothing executed."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ssae
from ssae.sae.formats import FORMATS
from ssae.sae.formats.untrusted import LARGEST_JSON, read_json

ARCHITECTURE = {
    "ssae": "topk",
    "saelens": "gated",
    "gemma_scope": "jumprelu",
    "dictionary_learning": "matryoshka",
    "sparsify": "topk",
}
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WEIGHTS = {name: module.FILES[0] for name, module in FORMATS.items()}
DESCRIPTIONS = {name: module.FILES[1] for name, module in FORMATS.items() if module.FILES[1:]}
SAFETENSORS = [name for name, file in WEIGHTS.items() if file.endswith(".safetensors")]

everything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["topk", "relu", "standard", "jumprelu", "__class__", "6.0.0", 24, 90, 7]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(make_sae: Callable[..., Any], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that saves a small SAE in a format."""

    def save(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)  # what an earlier example has damaged
        ssae.save(make_sae(ARCHITECTURE[name]), tmp_path / name, format=name)
        return tmp_path / name

    return save


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - any message; the caller reads it
        ssae.load(path)
    return str(error.value)


def loads_or_refuses(path: Path) -> None:
    """A change of a weight's value cannot be noticed; anything else must be a ValueError."""
    try:
        sae = ssae.load(path)
    except ValueError:
        return
    assert all(torch.isfinite(weight).all() for weight in sae.state_dict().values())


# Damage


@pytest.mark.parametrize("name", FORMATS)
def test_files_cut_short_are_refused(name: str, folder: Callable[[str], Path]):
    path = folder(name)
    for file in FORMATS[name].FILES[:2]:
        content = (path / file).read_bytes()
        # 30 bytes are more than the directory at the end of a zip, and its comment.
        for length in (0, 1, 7, 8, 9, 60, len(content) // 2, len(content) - 30):
            (path / file).write_bytes(content[:length])
            assert file in refused(path)
        (path / file).write_bytes(content)
    ssae.load(path)


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(data=st.data())
def test_flipped_bytes_never_give_anything_but_a_value_error(
    name: str, data: st.DataObject, folder: Callable[[str], Path]
):
    path = folder(name)
    file = path / data.draw(st.sampled_from(FORMATS[name].FILES[:2]))
    content = bytearray(file.read_bytes())
    # Headers are at either end, values in the middle.
    near = st.integers(0, min(400, len(content) - 1))
    position = near | near.map(lambda i: len(content) - 1 - i) | st.integers(0, len(content) - 1)
    for place, byte in data.draw(
        st.lists(st.tuples(position, st.integers(0, 255)), min_size=1, max_size=6)
    ):
        content[place] = byte
    file.write_bytes(content)
    loads_or_refuses(path)


@pytest.mark.parametrize("name", FORMATS)
@FUZZ
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(name: str, content: bytes, folder: Callable[[str], Path]):
    path = folder(name)
    (path / WEIGHTS[name]).write_bytes(content)
    assert WEIGHTS[name] in refused(path)


@pytest.mark.parametrize("name", DESCRIPTIONS)
@FUZZ
@given(data=st.data())
def test_a_description_of_anything_gives_nothing_but_a_value_error(
    name: str, data: st.DataObject, folder: Callable[[str], Path]
):
    path = folder(name) / DESCRIPTIONS[name]
    said = json.loads(path.read_text())
    inside = data.draw(st.sampled_from([said, *(v for v in said.values() if isinstance(v, dict))]))
    for key in data.draw(st.lists(st.sampled_from([*inside, "k", "d_sae", "activation"]))):
        inside[key] = data.draw(everything)
    path.write_text(json.dumps(said))
    loads_or_refuses(path.parent)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(
    name: str, value: float, folder: Callable[[str], Path]
):
    path = folder(name)
    rewrite(path / WEIGHTS[name], {"b_dec": torch.full((24,), value, dtype=torch.float64)})
    assert "b_dec holds non-finite values" in refused(path)


def rewrite(path: Path, changes: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(load_file(path) | changes, path)
    elif path.suffix == ".pt":
        torch.save(torch.load(path, weights_only=True) | changes, path)
    else:
        with np.load(path) as found:
            arrays = {name: found[name] for name in found.files}
        np.savez(path, **(arrays | {name: value.numpy() for name, value in changes.items()}))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [
        {"b_dec": torch.zeros(1)},  # would broadcast
        {"b_dec": torch.zeros(24, 1)},
        {"b_dec": torch.zeros(24, dtype=torch.int64)},
        {"b_dec": torch.zeros(24, dtype=torch.bool)},
        {"b_dec": torch.zeros(0)},
        {"extra": torch.zeros(3)},
    ],
)
def test_weights_of_another_shape_or_kind_are_refused(
    name: str, changes: dict[str, torch.Tensor], folder: Callable[[str], Path]
):
    path = folder(name)
    rewrite(path / WEIGHTS[name], changes)
    assert next(iter(changes)) in refused(path)


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize("size", [2**30, 10**18, -1, 0, 2.5, "90", None, True, [90]])
@pytest.mark.parametrize("key", ["d_in", "d_sae"])
def test_a_description_that_lies_about_sizes_allocates_nothing(
    name: str, key: str, size: Any, folder: Callable[[str], Path]
):
    path = folder(name) / DESCRIPTIONS[name]
    said = json.loads(path.read_text())
    inside = {"ssae": "hyperparameters", "dictionary_learning": "trainer"}.get(name)
    theirs = {
        "dictionary_learning": {"d_in": "activation_dim", "d_sae": "dict_size"},
        "sparsify": {"d_in": "d_in", "d_sae": "num_latents"},
    }.get(name, {"d_in": "d_in", "d_sae": "d_sae"})[key]
    (said[inside] if inside else said)[theirs] = size
    path.write_text(json.dumps(said))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path.parent)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("name", DESCRIPTIONS)
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b'{"d_sae": 1' + b"0" * 10_000,
     b'{"d_sae":' * 5_000, b" " * (LARGEST_JSON + 1)],
    ids=["empty", "open", "list", "null", "binary", "deep", "digits", "nested", "huge"],
)  # fmt: skip
def test_a_description_that_is_no_json_object_is_refused(
    name: str, content: bytes, folder: Callable[[str], Path]
):
    path = folder(name) / DESCRIPTIONS[name]
    path.write_bytes(content)
    assert path.name in refused(path.parent)


def test_a_pipe_or_a_folder_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.json")  # reading it would wait for ever
    for path in (tmp_path / "pipe.json", tmp_path):
        with pytest.raises(ValueError, match="there is no such file"):
            read_json(path)


@pytest.mark.parametrize("name", SAFETENSORS)
@pytest.mark.parametrize(
    "header",
    [
        {"W_enc": {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}},
        {"W_enc": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "F32", "shape": [2**63, 2], "data_offsets": [0, 4]}},
        {"W_enc": {"dtype": "object", "shape": [1], "data_offsets": [0, 4]}},
        {f"W{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(2000)},
        {},
    ],
)
def test_a_safetensors_header_that_lies_is_refused(
    name: str, header: dict[str, Any], folder: Callable[[str], Path]
):
    path = folder(name)
    text = json.dumps(header).encode()
    (path / WEIGHTS[name]).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    assert WEIGHTS[name] in refused(path)
    (path / WEIGHTS[name]).write_bytes(struct.pack("<Q", 2**60) + text)
    assert WEIGHTS[name] in refused(path)


# numpy


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path / "params.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name + ".npy", content)


def npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header.encode() + content


def test_an_object_array_is_refused_and_not_unpickled(tmp_path: Path):
    fired = tmp_path / "fired"
    bomb = np.array([Bomb(fired)], dtype=object)
    np.savez(tmp_path / "params.npz", W_enc=bomb, b_enc=np.zeros(3))
    assert "would have to be unpickled" in refused(tmp_path)
    assert not fired.exists()
    with np.load(tmp_path / "params.npz", allow_pickle=True) as found:
        found["W_enc"]
    assert fired.exists()  # the bomb was live


@pytest.mark.parametrize(
    "member",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824, 1073741824), }\n"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }\n", b"\0" * 16),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1e9, 2), }\n"),
        npy("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,), }\n", b"\0" * 4),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n", b"\0" * 4),
        npy("__import__('os').abort()\n"),
        npy("(" * 9000),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", b"\0" * 4, (9, 0)),
        npy("x" * 20_000, version=(2, 0)),
        b"",
    ],
)
def test_an_array_header_that_lies_is_refused(member: bytes, tmp_path: Path):
    npz(tmp_path, W_enc=member)
    assert "params.npz" in refused(tmp_path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path):
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (10000, 10000), }\n"
    path = tmp_path / "params.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("W_enc.npy", "w") as member,
    ):
        member.write(npy(header))
        for _ in range(400):
            member.write(b"\0" * 1_000_000)
    assert (tmp_path / "params.npz").stat().st_size < 1_000_000
    assert "claim to unpack to" in refused(tmp_path)


def test_members_with_the_same_name_are_refused(tmp_path: Path):
    content = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n", b"\0" * 4)
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("W_enc.npy", content)
    assert "same name" in refused(tmp_path)


# torch


def torch_zip(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Write what looks like a file of torch.save, with a pickle of our choice."""
    plain = io.BytesIO()
    torch.save({}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", compression) as archive:
        for info in source.infolist():
            content = data if info.filename.endswith("data.pkl") else source.read(info)
            archive.writestr(info.filename, content)


@pytest.mark.parametrize("form", ["zip", "raw", "legacy", "protocol 4", "inside"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    form: str, folder: Callable[[str], Path], tmp_path: Path
):
    path, fired = folder("dictionary_learning") / "ae.pt", tmp_path / "fired"
    bomb = {"W_enc": Bomb(fired)}
    if form == "zip":
        torch.save(bomb, path)
    elif form == "raw":
        path.write_bytes(pickle.dumps(bomb))
    elif form == "legacy":
        torch.save(bomb, path, _use_new_zipfile_serialization=False)
    elif form == "protocol 4":
        torch_zip(path, pickle.dumps(bomb, protocol=4))
    else:
        torch.save(torch.load(path, weights_only=True) | bomb, path)
    message = refused(path.parent)
    assert "ae.pt" in message
    assert not fired.exists()
    if form in ("zip", "inside"):
        assert "mkdir" in message
        torch.load(path, weights_only=False)
        assert fired.exists()  # the bomb was live


@pytest.mark.parametrize(
    "payload",
    [
        # What torch's restricted unpickler would still call: 10 TB of zeros, a tensor of any size.
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\xa0\x72\x4e\x18\x09\x85R.",
        b"\x80\x02ctorch\nTensor\n\x8a\x06\x00\xa0\x72\x4e\x18\x09\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n.",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n.",
        b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        b"\x80\x02ios\nsystem\n.",
        b"\x80\x02]\x94.",
        b"\x80\x02.",
        b"",
    ],
)
def test_a_pickle_may_name_tensors_only(payload: bytes, folder: Callable[[str], Path]):
    path = folder("dictionary_learning")
    torch_zip(path / "ae.pt", payload)
    assert "ae.pt" in refused(path)


def test_a_tensor_larger_than_its_file_is_refused(folder: Callable[[str], Path]):
    path = folder("dictionary_learning")
    config = json.loads((path / "config.json").read_text())
    config["trainer"] |= {"activation_dim": 2**20, "dict_size": 2**20}
    (path / "config.json").write_text(json.dumps(config))
    rewrite(path / "ae.pt", {"W_enc": torch.zeros(1).expand(2**20, 2**20)})  # 4 bytes, 4 TB
    assert "W_enc" in refused(path)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(90, 24).to_sparse(),
        torch.zeros(90, 24, device="meta"),
        torch.zeros(90, 24, dtype=torch.complex64),
        torch.zeros(90, 24).tolist(),
        "W",
        None,
    ],
    ids=["sparse", "meta", "complex", "list", "text", "none"],
)
def test_anything_but_plain_tensors_is_refused(value: Any, folder: Callable[[str], Path]):
    path = folder("dictionary_learning")
    rewrite(path / "ae.pt", {"W_dec": value})
    assert "ae.pt" in refused(path)


def test_a_compressed_file_of_torch_is_refused(folder: Callable[[str], Path]):
    path = folder("dictionary_learning")
    torch_zip(path / "ae.pt", pickle.dumps({}, protocol=2) * 100, zipfile.ZIP_DEFLATED)
    assert "torch.save does not compress" in refused(path)


@pytest.mark.parametrize("value", [torch.tensor([7]), torch.tensor(7.0), torch.tensor(-7)])
def test_a_k_that_is_not_one_positive_number_is_refused(
    value: torch.Tensor, folder: Callable[[str], Path]
):
    path = folder("dictionary_learning")
    rewrite(path / "ae.pt", {"k": value})
    assert " k " in refused(path)


@pytest.mark.parametrize("sizes", [[90, 0], [91, -1], [10, 30], [], [[90]], [90.0]])
def test_group_sizes_that_do_not_fit_are_refused(sizes: Any, folder: Callable[[str], Path]):
    path = folder("dictionary_learning")
    rewrite(path / "ae.pt", {"group_sizes": torch.tensor(sizes)})
    assert "group_sizes" in refused(path)
