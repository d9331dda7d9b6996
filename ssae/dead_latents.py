"""How long every latent has been silent."""

import torch
from torch import Tensor, nn

from ssae.ranks import all_reduce, world_size


class DeadLatents(nn.Module):
    """Counts, per latent, the tokens since it last fired and the tokens it ever fired on.

    dead = tokens_since_fired > dead_after_tokens. Buffers, so they travel in the checkpoint; the
    same on every rank, because firing is reduced over the global batch.

    Args:
        d_sae: number of latents.
        dead_after_tokens: silence that counts as death.
    """

    tokens_since_fired: Tensor
    fire_counts: Tensor

    def __init__(self, d_sae: int, dead_after_tokens: int) -> None:
        super().__init__()
        self.dead_after_tokens = dead_after_tokens
        self.register_buffer("tokens_since_fired", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("fire_counts", torch.zeros(d_sae, dtype=torch.int64))

    @property
    def dead(self) -> Tensor:
        """(d_sae,) bool."""
        return self.tokens_since_fired > self.dead_after_tokens

    @torch.no_grad()
    def update(self, latents: Tensor) -> None:
        """Count one batch of latents (n, d_sae); call once per training step, never in eval."""
        # Summed as floats: a sum of bools is ten times slower on CPUs.
        fires = all_reduce((latents > 0).float().sum(0).long())
        num_tokens = len(latents) * world_size()
        self.fire_counts += fires
        self.tokens_since_fired += num_tokens
        self.tokens_since_fired.masked_fill_(fires > 0, 0)
