"""SAEs by hub id: a hub of our own on this machine, through the real client and its cache."""

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import huggingface_hub
import pytest
import torch

import ssae
from ssae.sae import files, hub
from ssae.sae.formats import FORMATS
from ssae.sae.jumprelu import JumpReLUSAE
from ssae.sae.topk import TopKSAE

SHA = "0123456789abcdef0123456789abcdef01234567"
TAGGED = "fedcba9876543210fedcba9876543210fedcba98"


class Hub(NamedTuple):
    """A served folder: `files/owner/name/...`; what was asked for, and what is refused."""

    root: Path
    asked: list[str]
    gated: set[str]


def make_sae(seed: int = 0) -> JumpReLUSAE:
    torch.manual_seed(seed)
    sae = JumpReLUSAE(
        6, 20, l0_coefficient=1.0, target_l0=None, bandwidth=0.1, initial_threshold=0.5,
        threshold_lr=None, auxk_coefficient=0.1, k_aux=3, subtract_b_dec=False,
    )  # fmt: skip
    with torch.no_grad():
        sae.b_dec.normal_()
    return sae


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub(tmp_path / "files", [], set())
    state.root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, with_body: bool) -> None:
            parts = unquote(urlparse(self.path).path).strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                owner, name, kind, revision = parts[2:6]
                folder = state.root / owner / name
                if f"{owner}/{name}" in state.gated and kind == "tree":
                    return self.refuse(403, "GatedRepo", "Access is restricted.")
                if not folder.is_dir():
                    return self.refuse(404, "RepoNotFound", "Repository Not Found")
                if revision not in ("main", SHA, "v2", TAGGED):
                    return self.refuse(404, "RevisionNotFound", "Revision Not Found")
                state.asked.append(f"{kind} {revision}")
                there = sorted(path for path in folder.rglob("*") if path.is_file())
                names = [path.relative_to(folder).as_posix() for path in there]
                if kind == "revision":
                    sha = TAGGED if revision in ("v2", TAGGED) else SHA
                    listed = [{"rfilename": path} for path in names]
                    content: Any = {"id": f"{owner}/{name}", "sha": sha, "siblings": listed}
                else:
                    content = [
                        {"type": "file", "path": path, "size": (folder / path).stat().st_size,
                         "oid": hashlib.sha1((folder / path).read_bytes()).hexdigest()}
                        for path in names
                    ]  # fmt: skip
                return self.give(json.dumps(content).encode(), with_body)
            if parts[2:3] == ["resolve"]:
                owner, name, _, revision, *path = parts
                file = state.root.joinpath(owner, name, *path)
                state.asked.append("/".join(path))
                return self.give(file.read_bytes(), with_body, revision)
            return self.refuse(404, "EntryNotFound", "Entry not found")

        def give(self, content: bytes, with_body: bool, commit: str = SHA) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    constants = huggingface_hub.constants
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def repository(served: Hub) -> Hub:
    """google/scope with two SAEs and a file that no format knows."""
    root = served.root / "google/scope"
    ssae.save(make_sae(0), root / "layer_2/width_16k/average_l0_82", format="gemma_scope")
    ssae.save(make_sae(1), root / "layer_10/width_16k/average_l0_90", format="gemma_scope")
    (root / "layer_2/width_16k/average_l0_82/embeddings.bin").write_bytes(b"x" * 100)
    return served


ID = "google/scope/layer_2/width_16k/average_l0_82"


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_an_id_downloads_the_files_of_the_format_and_nothing_else(repository: Hub):
    x = torch.randn(9, 6) * 3
    sae = ssae.load(ID)
    assert torch.equal(sae(x).recon, make_sae(0).eval()(x).recon)
    fetched = {path for path in repository.asked if "/" in path}
    assert fetched == {"layer_2/width_16k/average_l0_82/params.npz"}


def test_what_was_downloaded_needs_no_network(repository: Hub, monkeypatch: pytest.MonkeyPatch):
    first = files.identity(hub.locate(ID))
    offline(monkeypatch)
    repository.asked.clear()
    assert files.identity(hub.locate(ID)) == first
    ssae.load(ID)
    assert repository.asked == []


def test_offline_without_a_copy_is_one_clear_error(
    repository: Hub, monkeypatch: pytest.MonkeyPatch
):
    offline(monkeypatch)
    with pytest.raises(ValueError, match=r"the hub does not give .*HF_HUB_OFFLINE.*local copy"):
        ssae.load(ID)
    monkeypatch.undo()


def test_offline_another_folder_of_a_known_repository_is_one_clear_error(
    repository: Hub, monkeypatch: pytest.MonkeyPatch
):
    ssae.load(ID)
    offline(monkeypatch)
    with pytest.raises(ValueError, match=r"layer_10/width_16k/average_l0_90 of google/scope"):
        ssae.load("google/scope/layer_10/width_16k/average_l0_90")


def test_a_folder_without_an_sae_lists_those_with(repository: Hub):
    for name in ("google/scope", "google/scope/layer_2", "google/scope/nowhere"):
        with pytest.raises(ValueError, match="these folders have: layer_2/width_16k/average_l0_82"):
            ssae.load(name)


def test_a_whole_repository_may_be_an_sae(served: Hub):
    torch.manual_seed(0)
    sae = TopKSAE(6, 20, k=3, auxk_coefficient=0.1, k_aux=3).eval()
    for name in ("saelens", "sparsify", "dictionary_learning", "ssae"):
        ssae.save(sae, served.root / "someone" / name, format=name)
        loaded = ssae.load(f"someone/{name}")
        assert files.detect(hub.locate(f"someone/{name}")) == name
        assert torch.equal(loaded.W_dec, sae.W_dec)


@pytest.mark.parametrize("revision", ["v2", TAGGED])
def test_a_revision_is_written_after_an_at(repository: Hub, revision: str):
    ssae.load(f"google/scope@{revision}/layer_2/width_16k/average_l0_82")
    asked = [entry for entry in repository.asked if entry.startswith("revision")]
    assert asked in ([f"revision {revision}"], [])  # a full commit need not be looked up
    with pytest.raises(ValueError, match="at v3: "):
        ssae.load("google/scope@v3/layer_2/width_16k/average_l0_82")


def test_an_unknown_repository_is_one_clear_error(served: Hub):
    with pytest.raises(ValueError, match=r"no folder nobody/nothing here, and the hub .*spelling"):
        ssae.load("nobody/nothing")


def test_a_gated_repository_says_how_to_get_in(repository: Hub):
    repository.gated.add("google/scope")
    with pytest.raises(
        ValueError, match=r"accept its conditions on .*google/scope .*hf auth login"
    ):
        ssae.load(ID)


def test_a_folder_of_that_name_is_never_looked_up(
    repository: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repository.root / "google/scope/layer_10", tmp_path / "google/scope/layer_2")
    name = "google/scope/layer_2/width_16k/average_l0_90"
    assert torch.equal(ssae.load(name).W_dec, make_sae(1).W_dec)
    assert repository.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "nowhere", "/nowhere/at/all", "../up/one", "a/../b/c", "./a/b", "~/a/b", "a//b", "a b/c",
        "https://huggingface.co/a/b", "a\\b/c", "", "-/-", Path("owner/repository/sub"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_id_is_not_looked_up(name: str | Path, served: Hub):
    with pytest.raises(ValueError, match=r"there is no such folder|holds no SAE|it is a file"):
        ssae.load(name)
    assert served.asked == []


def test_a_hostile_repository_is_refused_like_a_hostile_folder(served: Hub):
    root = served.root / "someone/sae"
    root.mkdir(parents=True)
    (root / "params.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"cannot read .*params\.npz"):
        ssae.load("someone/sae")


def test_every_file_of_every_format_is_asked_for():
    assert set(hub.FILES) == {file for module in FORMATS.values() for file in module.FILES}
