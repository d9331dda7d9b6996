"""Artifacts of pooled activations and of pooled latents: one pass makes what is missing.

represent.safetensors    pooled (num_documents, d_in); or of an SAE: indptr, indices, data, shape
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy import sparse
from torch import Tensor

from ssae.activation.rows import Rows
from ssae.artifact.store import build, locate
from ssae.artifact.tensors import write_tensors
from ssae.artifact.together import build_together, from_rank_zero
from ssae.language_model.frozen import LanguageModel
from ssae.probe.represent import Pooled, Site, represent, row_batches
from ssae.sae.files import identity, load
from ssae.sae.sparse import SparseLatents
from ssae.study import Study
from ssae.training.trainer import predict_trainer

FILE = "represent.safetensors"


def kept(study: Study, rows: Rows, hookpoint: str, edit: Mapping[str, Any] | None = None) -> Tensor:
    """Return what `represent` does, from the artifact of an earlier call if there is one.

    Args:
        study: names the model and the size of a batch.
        rows: of the documents.
        hookpoint: where the probe reads.
        edit: null, or {"name", "hookpoint", "edit", and whatever else decides it}.
    """
    edit = dict(edit or {})
    edits = {edit["hookpoint"]: edit.pop("edit")} if edit else {}
    lm = study.language_model
    inputs = {
        "rows": rows.artifact, "language_model": lm.identity(), "hookpoint": hookpoint,
        "edit": edit, "format": 1,
    }  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        x = represent(lm, rows, hookpoint, study.harvest_batch_tokens, edits)
        write_tensors({"pooled": x}, folder / FILE)
        return {"num_documents": rows.num_documents}

    return load_file(build(study.artifacts, "represent", inputs, make).path / FILE)["pooled"]


def represent_all(
    study: Study, rows: Rows, hookpoint: str, saes: Mapping[Path, str]
) -> tuple[Tensor, dict[Path, sparse.csr_array]]:
    """Return the pooled activations, and the pooled latents (num_documents, d_sae) of every SAE.

    One forward pass makes all that is not there yet.

    Args:
        study: names the model and the size of a batch.
        rows: of the documents.
        hookpoint: where the probe reads.
        saes: {folder of an SAE: its hookpoint}.
    """
    lm = study.language_model
    shared = {"rows": rows.artifact, "language_model": lm.identity(), "format": 1}
    wanted: list[dict[str, Any]] = [shared | {"hookpoint": hookpoint, "sae": None}]
    wanted += [shared | {"hookpoint": at, "sae": identity(path)} for path, at in saes.items()]
    distinct = {locate(study.artifacts, "represent", inputs).path: inputs for inputs in wanted}
    folders = [locate(study.artifacts, "represent", inputs).path for inputs in wanted]
    paths = dict(zip(folders[1:], saes, strict=True))

    def write(partial: list[Path]) -> None:
        missing = [folder.with_suffix("") for folder in partial]
        sites = {f: Site(saes[paths[f]], load(paths[f])) for f in missing if f in paths}
        x, latents = _read_all(lm, rows, hookpoint, sites, study.harvest_batch_tokens)
        for folder, final in zip(partial, missing, strict=True):
            tensors = _as_tensors(latents[final]) if final in sites else {"pooled": x}
            write_tensors(tensors, folder / FILE)

    def make(partial: list[Path]) -> list[Mapping[str, Any]]:
        from_rank_zero(lambda: write(partial))
        return [{"num_documents": rows.num_documents}] * len(partial)

    build_together(
        study.artifacts,
        [("represent", inputs) for inputs in distinct.values()],
        make,
        predict_trainer(study),
    )
    x = load_file(folders[0] / FILE)["pooled"]
    found = {path: _as_matrix(folder) for folder, path in paths.items()}
    return x, {path: found[paths[folder]] for folder, path in zip(folders[1:], saes, strict=True)}


@torch.no_grad()
def _read_all(
    lm: LanguageModel, rows: Rows, hookpoint: str, sites: Mapping[Any, Site], batch_tokens: int
) -> tuple[Tensor, dict[Any, sparse.csr_array]]:
    """Return pooled activations and pooled latents by one pass."""
    device = lm.device_used
    for site in sites.values():
        site.sae.to(device)
    hookpoints = list(dict.fromkeys([hookpoint, *(site.hookpoint for site in sites.values())]))
    sums: Pooled | None = None
    parts: dict[Any, list[sparse.coo_array]] = {key: [] for key in sites}
    shape = rows.num_documents
    everything = np.arange(rows.num_rows)
    what = f"reading documents with {len(sites)} SAEs"
    for batch in row_batches(rows, everything, batch_tokens, what):
        captured = lm.capture_all(batch.input_ids, hookpoints, batch.attention_mask)
        sums = sums or Pooled(shape, captured[hookpoint].shape[2])
        sums.add(captured[hookpoint], batch)
        documents = batch.document_ids[batch.text].numpy()
        for key, (at, sae) in sites.items():
            x = captured[at]
            latents = sae(x[batch.text.to(x.device)].float().to(device)).latents
            tokens, indices, values = active_entries(latents)
            entries = (values, (documents[tokens], indices))
            summed = sparse.coo_array(entries, (shape, sae.d_sae))
            summed.sum_duplicates()
            parts[key].append(summed)
    assert sums is not None
    scale = sparse.diags_array(1 / sums.counts.clamp_min(1).numpy())
    return sums.means(), {
        key: _as_float(sparse.csr_array(scale @ _sum(parts[key]).tocsr())) for key in sites
    }


def active_entries(latents: SparseLatents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (token, latent, value) of the latents > 0, each (nnz,), of a forward pass."""
    active = latents.active
    indices = active.indices
    if indices is None:
        every = torch.arange(active.d_sae, device=active.offsets.device)
        indices = every.repeat(active.num_tokens)
    positive = latents.values > 0
    found = (active.tokens[positive], indices[positive], latents.values[positive].double())
    tokens, indices, values = (one.cpu().numpy() for one in found)
    return tokens, indices, values


def _as_float(matrix: sparse.csr_array) -> sparse.csr_array:
    values = matrix.data.astype(np.float32)
    return sparse.csr_array((values, matrix.indices, matrix.indptr), matrix.shape)


def _sum(parts: Sequence[sparse.coo_array]) -> sparse.coo_array:
    data, row, col = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "row", "col")
    )
    return sparse.coo_array((data, (row, col)), parts[0].shape)


def _as_tensors(matrix: sparse.csr_array) -> dict[str, Tensor]:
    parts = {
        "indptr": matrix.indptr.astype(np.int64), "indices": matrix.indices.astype(np.int32),
        "data": matrix.data, "shape": np.array(matrix.shape),
    }  # fmt: skip
    return {name: torch.from_numpy(part) for name, part in parts.items()}


def _as_matrix(folder: Path) -> sparse.csr_array:
    parts = {k: v.numpy() for k, v in load_file(folder / FILE).items()}
    return sparse.csr_array(
        (parts["data"], parts["indices"], parts["indptr"]), tuple(parts["shape"])
    )
