"""The two products of the sparse step, with their derivatives both ways.

On an active set of pairs (i, j), in CSR order,

    sampled_product   a_i . b_j                       of every pair
    weighted_rows     sum_j weights_ij table[j]       of every token

and each is the derivative of the other.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ssae.sae.sparse import ActiveSet


def pre_acts_on(
    active: "ActiveSet", x: Tensor, W_enc_T: Tensor, b_enc: Tensor, values: Tensor | None
) -> Tensor:
    """Return x_i . W_enc_T[j] + b_enc_j (nnz,), or `values` with the derivatives of that."""
    return _PreActs.apply(x, W_enc_T, b_enc, active, values)  # pyright: ignore[reportReturnType]


def decode_on(active: "ActiveSet", values: Tensor, W_dec: Tensor) -> Tensor:
    """Return sum_j values_ij W_dec[j], shape (n, d_in)."""
    return _Decode.apply(values, W_dec, active)  # pyright: ignore[reportReturnType]


def sampled_product(a: Tensor, b: Tensor, active: "ActiveSet") -> Tensor:
    """Return a_i . b_j of every entry (nnz,), from a (n, d_in) and b (d_sae, d_in)."""
    if a.dtype in (torch.bfloat16, torch.float16):  # the kernel knows float32 and float64
        return sampled_product(a.float(), b.float(), active).to(a.dtype)
    assert active.indices is not None
    pattern = torch.sparse_csr_tensor(
        active.offsets, active.indices, a.new_zeros(len(active.indices)),
        (active.num_tokens, active.d_sae), check_invariants=False,
    )  # fmt: skip
    return torch.sparse.sampled_addmm(pattern, a, b.T, beta=0.0).values()


def weighted_rows(table: Tensor, indices: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return sum_t weights_t table[indices_t] over each segment: (len(offsets) - 1, d_in)."""
    return nn.functional.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=weights.to(table.dtype),
        include_last_offset=True,
    )  # fmt: skip


class _PreActs(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, W_enc_T: Tensor, b_enc: Tensor, active: "ActiveSet", values: Tensor | None
    ) -> Tensor:
        if values is not None:
            return values.clone()
        return sampled_product(x, W_enc_T, active) + b_enc[active.indices]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, W_enc_T, _, ctx.active, _ = inputs
        ctx.save_for_backward(x, W_enc_T)
        ctx.save_for_forward(x, W_enc_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), active = grads, ctx.active
        x, W_enc_T = ctx.saved_tensors
        grad_x = grad_W = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = weighted_rows(W_enc_T, active.indices, active.offsets, grad)
        offsets, tokens, entries = active.transposed
        by_latent = grad[entries]
        if ctx.needs_input_grad[1]:
            grad_W = weighted_rows(x, tokens, offsets, by_latent)
        if ctx.needs_input_grad[2]:
            grad_b = torch.segment_reduce(by_latent, "sum", offsets=offsets.long())
        return grad_x, grad_W, grad_b, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        dx, dW, db, *_ = tangents
        x, W_enc_T = ctx.saved_tensors
        result = 0
        if dx is not None:
            result = result + sampled_product(dx, W_enc_T, ctx.active)
        if dW is not None:
            result = result + sampled_product(x, dW, ctx.active)
        if db is not None:
            result = result + db[ctx.active.indices]
        return result  # pyright: ignore[reportReturnType]


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, W_dec: Tensor, active: "ActiveSet") -> Tensor:
        assert active.indices is not None
        return weighted_rows(W_dec, active.indices, active.offsets, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        values, W_dec, ctx.active = inputs
        ctx.save_for_backward(values, W_dec)
        ctx.save_for_forward(values, W_dec)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad = grads[0].contiguous()
        values, W_dec = ctx.saved_tensors
        grad_values = grad_W = None
        if ctx.needs_input_grad[0]:
            grad_values = sampled_product(grad, W_dec, ctx.active)
        if ctx.needs_input_grad[1]:
            offsets, tokens, entries = ctx.active.transposed
            grad_W = weighted_rows(grad, tokens, offsets, values[entries])
        return grad_values, grad_W, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        d_values, dW, _ = tangents
        values, W_dec = ctx.saved_tensors
        result = 0
        if d_values is not None:
            result = result + weighted_rows(W_dec, ctx.active.indices, ctx.active.offsets, d_values)
        if dW is not None:
            result = result + weighted_rows(dW, ctx.active.indices, ctx.active.offsets, values)
        return result  # pyright: ignore[reportReturnType]
