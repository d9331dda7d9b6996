"""Weights kept on the way through training, for TracIn (tracin.py).

What a document did to an SAE is a sum over the steps t of training, each weighing its learning rate
lr_t; checkpoints stand for the steps around them (arXiv 2002.08484, section 3). With

    L_s = sum_{t < s} lr_t                              over the first s steps
    s_c = the least s with L_s >= (c + 1/2) / C * L     c = 0 .. C - 1, L that of the whole run

snapshot c is the SAE in the middle of the c-th of C equal shares of L, so all weigh the same. Steps
spaced evenly would leave one where the learning rate has fallen to nothing.

    snapshots/step_000123/    sae.safetensors, sae.json: the SAE after 123 steps (ssae.load)
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L

from ssae.artifact.manifest import sync
from ssae.artifact.together import from_rank_zero
from ssae.process.fsdp import gathered
from ssae.sae import files
from ssae.sae.base import SparseAutoencoder
from ssae.sae.formats.content import skeleton
from ssae.sae.residual import ResidualSAE
from ssae.training import divergence

if TYPE_CHECKING:
    from ssae.training.lit_sae import LitSAE

FOLDER = "snapshots"


def snapshot_steps(lr_factors: Sequence[float], num: int) -> dict[int, float]:
    """Return {steps done: share of the summed learning rate}, shares that sum to 1.

    Args:
        lr_factors: of every step, in any unit.
        num: of snapshots; where several fall on one step it has the weight of all of them.
    """
    sums = list(itertools.accumulate(lr_factors))
    middles = [(c + 0.5) / num * sums[-1] for c in range(num)]
    steps = [next(s for s, done in enumerate(sums, 1) if done >= middle) for middle in middles]
    return {step: count / num for step, count in Counter(steps).items()}


def folder_of(trained: Path, step: int) -> Path:
    """Return where a train artifact has its snapshot of a step."""
    return trained / FOLDER / f"step_{step:06d}"


class Snapshots(L.Callback):
    """Writes the SAE as it is after some steps; training is the same to the bit as without.

    A step's snapshot is on disk before a checkpoint of that step is (Lightning calls checkpoints
    last): a run that goes on from a checkpoint has all snapshots before it, and writes those after
    it again.

    Args:
        folder: of the train artifact, which outlives an interruption.
        num: how many; 0 for none.
        metadata: for sae.json.
        checkpoints: folder that a run continues from; errors name it.
    """

    def __init__(
        self, folder: Path, num: int, metadata: Mapping[str, Any], checkpoints: Path
    ) -> None:
        self.folder, self.num, self.metadata = folder, num, metadata
        self.checkpoints = checkpoints
        self.weights: dict[int, float] = {}
        """{step: share of the summed learning rate}, once training starts."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Choose the steps."""
        lit = cast("LitSAE", pl_module)
        factors = [lit.lr_factor(step) for step in range(lit.num_steps)]
        self.weights = snapshot_steps(factors, self.num)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse to go on from a checkpoint whose run has lost a snapshot.

        Raises:
            ValueError: names the snapshot.
        """
        from_rank_zero(lambda: self._check(trainer.global_step))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Write the snapshot of this step, if it has one."""
        lit = cast("LitSAE", pl_module)
        if trainer.global_step in self.weights:
            divergence.check_weights(lit.sae, trainer.global_step, lit.lr)
            sae = unscaled(lit.sae, lit.input_scale)
            from_rank_zero(lambda: self._write(sae, trainer.global_step))

    def described(self) -> list[dict[str, float]]:
        """Return the manifest's rows: step and weight of each."""
        return [{"step": step, "weight": weight} for step, weight in self.weights.items()]

    def _check(self, step: int) -> None:
        for path in (folder_of(self.folder, s) for s in self.weights if s <= step):
            if not (path / "sae.json").is_file():
                raise ValueError(
                    f"{path} is gone, and training would go on from step {step}, after it; to "
                    f"train from the start: rm -r {self.checkpoints}"
                )

    def _write(self, sae: SparseAutoencoder, step: int) -> None:
        path = folder_of(self.folder, step)
        files.save(sae, path, metadata={**self.metadata, "step": step})
        for name in (*path.iterdir(), path, path.parent, self.folder):
            sync(name)


def unscaled(sae: SparseAutoencoder, input_scale: float) -> SparseAutoencoder:
    """Return a copy on the CPU, in eval mode, that reads x where `sae` reads input_scale * x.

    As `LitSAE.finished_sae` does, but training may go on. Every rank must call.
    """
    state = gathered(sae).state_dict()
    copy = skeleton(sae.architecture, sae.hyperparameters, where="the SAE in training")
    # On a GPU, training may have left no room for another one.
    state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
    copy.load_state_dict(state, assign=True)
    if isinstance(copy, ResidualSAE) and isinstance(sae, ResidualSAE):
        copy.scale = sae.scale  # what no hyperparameter says
    copy.rescale_input(1 / input_scale)
    return copy.eval()
