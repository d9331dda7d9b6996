"""How long every latent has been silent."""

import torch
from torch import Tensor, nn

from ssae.process.ranks import all_reduce, world_size
from ssae.sae.sparse import SparseLatents


class DeadLatents(nn.Module):
    """Counts, per latent, the tokens since it last fired and the tokens it ever fired on.

    dead = tokens_since_fired > dead_after_tokens. Buffers, so they travel in the checkpoint; the
    same on every rank, because firing is reduced over the global batch.

    Args:
        d_sae: number of latents.
        dead_after_tokens: silence that counts as death.
        num_frozen: the first latents, as many, cannot die: they are not trained.
    """

    tokens_since_fired: Tensor
    fire_counts: Tensor
    recycled: Tensor
    """(d_sae,) bool: started anew, by recycle.py before training or by resample.py since."""

    def __init__(self, d_sae: int, dead_after_tokens: int, num_frozen: int = 0) -> None:
        super().__init__()
        self.dead_after_tokens, self.num_frozen = dead_after_tokens, num_frozen
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("fire_counts", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("recycled", torch.zeros(d_sae, dtype=torch.bool))

    @property
    def dead(self) -> Tensor:
        """(d_sae,) bool."""
        return self.tokens_since_fired > self.dead_after_tokens

    @torch.no_grad()
    def update(self, latents: SparseLatents, flag: Tensor) -> Tensor:
        """Count one batch; call once per training step, never in eval.

        Args:
            latents: of this rank's part of the batch.
            flag: () bool, sent along in the same reduction.

        Returns:
            () bool: whether any rank's flag is set.
        """
        counts = latents.fire_counts()
        reduced = all_reduce(torch.cat([counts, flag[None].to(counts.dtype)]))
        fires, flag = reduced[:-1], reduced[-1] > 0
        num_tokens = latents.active.num_tokens * world_size()
        self.fire_counts += fires
        self.tokens_since_fired += num_tokens
        self.tokens_since_fired.masked_fill_(fires > 0, 0)
        self.tokens_since_fired[: self.num_frozen] = 0
        return flag

    def restart(self, latents: Tensor) -> None:
        """Take note that latents (num,) have been started anew."""
        self.tokens_since_fired[latents] = 0
        self.recycled[latents] = True
