import functools
import re
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger

from ssae.activation.datamodule import ActivationDataModule, Shards, ShardSource
from ssae.activation.order import WindowOrder
from ssae.activation.shards import Tokens
from ssae.dead_latents.silence import DeadLatents
from ssae.objective.base import Losses
from ssae.objective.erm import ERM
from ssae.objective.term import TERM
from ssae.sae.relu import ReLUSAE
from ssae.sae.sparse import ActiveSet, SparseLatents
from ssae.sae.topk import TopKSAE
from ssae.training.lit_sae import LitSAE


def make_sae(kind: str = "topk") -> TopKSAE | ReLUSAE:
    torch.manual_seed(0)
    if kind == "relu":
        return ReLUSAE(4, 12, l1_coefficient=0.3, auxk_coefficient=1 / 32, k_aux=2)
    return TopKSAE(4, 12, k=2, auxk_coefficient=1 / 32, k_aux=2)


def fit(
    harvest,
    *,
    kind="topk",
    objective=None,
    num_steps=12,
    log_every=1,
    logger=False,
    clip=None,
    **changes,
):
    """Train for some steps; return the module before its scale is folded back."""
    activations = harvest.activations
    options = {
        "optimizer": functools.partial(torch.optim.Adam, betas=(0.9, 0.999)), "lr": 1e-2,
        "warmup_steps": 3, "decay_share": 0.25, "num_steps": num_steps,
        "mean_norm": activations.mean_norm, "variance": activations.variance,
        "dead_after_tokens": 20, "sparsity_warmup_steps": 0, "screening": "exact",
    }  # fmt: skip
    lit = LitSAE(make_sae(kind), objective or ERM(), **(options | changes))
    settings = Shards(window_tokens=64, block_tokens=64, read_ahead=False)
    source = ShardSource(activations, settings, batch_size=10, seed=0)
    data = ActivationDataModule(source, num_steps)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=num_steps, logger=logger,
        log_every_n_steps=log_every, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, gradient_clip_val=clip and clip[1],
        gradient_clip_algorithm=clip and clip[0],
    )  # fmt: skip
    trainer.fit(lit, data)
    return lit


@pytest.fixture
def harvest(write_tokens, random_tokens):
    return write_tokens(random_tokens(64), 50)


@pytest.mark.parametrize("kind", ["topk", "relu"])
@pytest.mark.parametrize("objective", [ERM(), TERM(tilt=2.0)], ids=["erm", "term"])
@pytest.mark.parametrize("clip", [None, ("norm", 0.05), ("value", 0.01)])
def test_training_equals_a_plain_loop_over_the_definition(harvest, kind, objective, clip):
    num_steps, lr, dead_after = 12, 1e-2, 20
    lit = fit(harvest, kind=kind, objective=objective, clip=clip)

    x_all = harvest.tokens.activations
    scale = 4**0.5 / float(x_all.norm(dim=1).mean())
    variance = scale**2 * float((x_all - x_all.mean(0)).square().sum(1).mean())
    sae = make_sae(kind)
    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)
    order = WindowOrder(64, 10, 0, 64, 64)
    since, counts = torch.zeros(12), torch.zeros(12)
    num_revived = num_clipped = 0
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 3, (num_steps - step) / 3)
        x = scale * x_all[order.indices(step)]
        latents = sae.encode(x)  # dense: the step itself is sparse
        recon = sae.decode(latents)
        errors = (x - recon).square().sum(1)
        if kind == "relu":
            errors = errors + 0.3 * (latents * sae.W_dec.norm(dim=1)).sum(1)
        losses = errors / variance
        loss = losses.mean()
        if isinstance(objective, TERM):
            loss = losses.mul(2.0).exp().mean().log() / 2.0
        dead = (since > dead_after).nonzero()[:, 0]
        if len(dead):
            num_revived += 1
            residual = (x - recon).detach()
            aux = sae.auxk_errors(x, residual, dead).mean()
            loss = loss + aux / residual.square().sum(1).mean() / 32
        optimizer.zero_grad()
        loss.backward()
        along = (sae.W_dec.grad * sae.W_dec.data).sum(1, keepdim=True)
        sae.W_dec.grad -= along * sae.W_dec.data
        if clip is not None:
            how, limit = clip
            gradients = torch.cat([p.grad.flatten() for p in sae.parameters()])
            factor = min(1.0, limit / float(gradients.norm()))
            num_clipped += factor < 1 if how == "norm" else float(gradients.abs().max()) > limit
            for p in sae.parameters():
                p.grad = p.grad * factor if how == "norm" else p.grad.clamp(-limit, limit)
        optimizer.step()
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
        fires = (latents > 0).sum(0)
        counts += fires
        since = torch.where(fires > 0, 0, since + len(x))
    if kind == "topk":
        assert num_revived > 0
    assert clip is None or num_clipped > 0
    assert lit.dead_latents.fire_counts.tolist() == counts.tolist()
    assert lit.dead_latents.tokens_since_fired.tolist() == since.tolist()
    for name, weight in sae.state_dict().items():
        torch.testing.assert_close(lit.sae.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_the_finished_sae_reads_unscaled_activations(harvest, kind):
    lit = fit(harvest, kind=kind)
    x = harvest.tokens.activations
    with torch.no_grad():
        expected = lit.sae(lit.input_scale * x).recon / lit.input_scale
        finished = lit.finished_sae()
        torch.testing.assert_close(finished(x).recon, expected, rtol=1e-4, atol=1e-5)
    assert not finished.training
    torch.testing.assert_close(finished.W_dec.norm(dim=1), torch.ones(12))


def test_inputs_have_mean_norm_sqrt_d_in_and_losses_the_unit_of_the_variance(harvest):
    lit = fit(harvest, num_steps=1)
    x = lit.input_scale * harvest.tokens.activations
    assert x.norm(dim=1).mean().item() == pytest.approx(2, rel=1e-5)
    expected = (x - x.mean(0)).square().sum(1).mean().item()
    assert lit.variance == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_stays_and_falls(harvest):
    lit = fit(harvest, num_steps=1, warmup_steps=4, decay_share=0.2)
    lit.num_steps, lit.decay_steps = 20, 4
    expected = [0.25, 0.5, 0.75, *[1.0] * 14, 0.75, 0.5, 0.25]
    assert [lit.lr_factor(step) for step in range(20)] == expected
    assert lit.lr_factor(20) == 0
    lit.warmup_steps = 0
    assert lit.lr_factor(0) == 1


def test_a_logged_value_is_that_of_the_step_it_is_logged_at(harvest, tmp_path):
    """Values logged every step are the reference for those logged every fourth."""
    logged = {}
    for log_every in (1, 4):
        logger = CSVLogger(tmp_path, name=f"every{log_every}")
        fit(harvest, log_every=log_every, logger=logger)
        lines = (tmp_path / f"every{log_every}" / "version_0" / "metrics.csv").read_text().split()
        names = lines[0].split(",")
        rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
        logged[log_every] = {int(row["step"]): row for row in rows}
    assert len(logged[4]) == 3
    for step, row in logged[4].items():
        for name in ("loss", "fvu", "l0", "dead"):
            assert row[f"train/{name}"] == logged[1][step][f"train/{name}"], (step, name)


def test_logged_values_are_those_of_the_batch(harvest, tmp_path):
    fit(harvest, num_steps=1, logger=CSVLogger(tmp_path, name="log"))
    header, line = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().split()
    row = {
        name: float(value)
        for name, value in zip(header.split(","), line.split(","), strict=True)
        if value
    }
    x_all = harvest.tokens.activations
    x = x_all[WindowOrder(64, 10, 0, 64, 64).indices(0)]
    sae = make_sae()
    with torch.no_grad():
        latents = sae.encode(x)
        recon = sae.decode(latents)
    variance = (x_all - x_all.mean(0)).square().sum(1).mean()
    assert row["train/fvu"] == pytest.approx(
        float((x - recon).square().sum(1).mean() / variance), rel=1e-4
    )
    assert row["train/loss"] == pytest.approx(row["train/fvu"])
    assert row["train/l0"] == pytest.approx(float((latents > 0).sum(1).float().mean()))
    assert row["train/dead"] == 0


def naive_dead_latents(batches: list[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Count token by token; a latent that fires anywhere in a batch is alive at its end."""
    since, counts = [0] * 5, [0] * 5
    for batch in batches:
        for j in range(5):
            fires = sum(float(token[j]) > 0 for token in batch)
            counts[j] += fires
            since[j] = 0 if fires else since[j] + len(batch)
    return since, counts


@pytest.mark.parametrize("sparse", [True, False])
def test_dead_latents_are_counted_as_a_loop_counts_them(sparse):
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.rand(int(n), 5, generator=generator).sub(torch.linspace(0.5, 1.1, 5)).relu()
        for n in torch.randint(1, 8, (30,), generator=generator)
    ]
    dead_latents = DeadLatents(5, dead_after_tokens=25)
    for batch in batches:
        active, values = ActiveSet.every(len(batch), 5, batch.device), batch.flatten()
        if sparse:
            active, values = ActiveSet.of_pairs(*batch.nonzero().T, len(batch), 5), batch[batch > 0]
        flag = torch.tensor(len(batch) == 3)
        assert dead_latents.update(SparseLatents(active, values), flag) == flag
    since, counts = naive_dead_latents(batches)
    assert dead_latents.tokens_since_fired.tolist() == since
    assert dead_latents.fire_counts.tolist() == counts
    assert dead_latents.dead.tolist() == [s > 25 for s in since]
    assert 0 < dead_latents.dead.sum() < 5


@pytest.mark.parametrize("log_every", [1, 50])
def test_activations_that_are_not_finite_stop_the_run_at_their_step(
    harvest, monkeypatch, log_every
):
    batch = ShardSource.batch

    def poisoned(self: ShardSource, step: int, rank: int, size: int) -> Tokens:
        tokens = batch(self, step, rank, size)
        if step == 5:
            tokens.activations[3, 1] = float("nan")
        return tokens

    monkeypatch.setattr(ShardSource, "batch", poisoned)
    index = int(WindowOrder(64, 10, 0, 64, 64).indices(5)[3])
    where = re.escape(harvest.activations.where(index))
    with pytest.raises(ValueError, match=f"step 5: the activations of {where} are not finite"):
        fit(harvest, num_steps=7, log_every=log_every)


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(harvest, monkeypatch, log_every):
    """One token's is infinite; the objective makes nan of it."""
    losses = LitSAE._losses

    def poisoned(self: LitSAE, *arguments) -> Losses:
        found = losses(self, *arguments)
        if self.global_step == 5:
            errors = torch.where(torch.arange(10) == 4, float("inf"), found.errors)
            found = found._replace(errors=errors)
        return found

    monkeypatch.setattr(LitSAE, "_losses", poisoned)
    index = int(WindowOrder(64, 10, 0, 64, 64).indices(5)[4])
    where = re.escape(harvest.activations.where(index))
    with pytest.raises(ValueError, match=f"step 5: the loss is inf, that of {where}; .*smaller lr"):
        fit(harvest, num_steps=7, log_every=log_every)


def loss_of_rank(rank: int, folder: Path) -> None:
    """The third row of rank 1 is not finite."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    lit = LitSAE(
        make_sae(), ERM(), optimizer=functools.partial(torch.optim.Adam), lr=1e-2, warmup_steps=0,
        decay_share=0, num_steps=1, mean_norm=2, variance=1, dead_after_tokens=20,
        sparsity_warmup_steps=0, screening="exact",
    )  # fmt: skip
    x = torch.ones(5, 4)
    x[2, 0] = float("nan") if rank else 1
    try:
        lit.loss(x)
    except ValueError as error:
        (folder / f"rank{rank}").write_text(str(error))


def test_ranks_stop_together_at_a_loss_that_one_of_them_has(tmp_path):
    torch.multiprocessing.start_processes(loss_of_rank, (tmp_path,), nprocs=2, start_method="fork")
    assert "step 0: the loss is not finite; try" in (tmp_path / "rank0").read_text()
    assert "the activations of row 2 of the batch" in (tmp_path / "rank1").read_text()


def test_weights_that_are_not_finite_do_not_leave_training(harvest):
    lit = fit(harvest, num_steps=1)
    with torch.no_grad():
        lit.sae.W_enc_T[3, 0] = float("inf")
    with pytest.raises(ValueError, match="W_enc_T holds non-finite values"):
        lit.finished_sae()
