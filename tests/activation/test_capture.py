import numpy as np
import pytest
import torch

from ssae.activation.capture import capture_text, origins
from ssae.activation.rows import batches_of

TEXTS = [
    "the mean of a sample",
    "a normal distribution has mean and variance: array_like, optional. " * 4,
    "",
    "file<|endoftext|>string path list of the module " * 3,
]
HOOKPOINTS = {
    "neox": ["gpt_neox.layers.1", "gpt_neox.layers.0.mlp"],
    "mistral": ["model.layers.0.self_attn", "model.layers.1"],
    "bert": ["encoder.layer.0", "encoder.layer.2"],
}


@pytest.fixture(params=HOOKPOINTS)
def model(request):
    return request.getfixturevalue(request.param), HOOKPOINTS[request.param]


@pytest.mark.parametrize("packing", ["packed", "documents"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_every_token_of_text_comes_once_with_the_activation_its_row_gives(
    model, make_rows, packing, batch_tokens
):
    lm, hookpoints = model
    rows = make_rows(lm, TEXTS, 16, "row", packing)
    expected = {}
    special = set(lm.tokenizer.all_special_ids)
    for row in range(len(rows)):
        batch = rows.batch(np.array([row]))  # alone: no padding, no mask
        ids = batch.input_ids
        x = {hookpoint: lm.capture(ids, hookpoint)[0] for hookpoint in hookpoints}
        for position, token in enumerate(ids[0].tolist()):
            if token not in special:
                key = (row, position)
                place = [token, int(batch.document_ids[0, position]), position]
                expected[key] = place, {name: x[name][position] for name in hookpoints}
    assert len(expected) == rows.num_tokens
    seen = set()
    for row_ids in batches_of(rows, np.arange(len(rows))[::-1], batch_tokens):
        batch = rows.batch(row_ids)
        found = capture_text(lm, batch, hookpoints)
        places = origins(batch)
        assert list(found) == hookpoints
        assert places.dtype == torch.int32
        assert places.device.type == "cpu"
        keys = [key for row in row_ids.tolist() for key in sorted(expected) if key[0] == row]
        assert places.tolist() == [expected[key][0] for key in keys]  # in reading order
        for name, x in found.items():
            assert not x.is_inference()
            right = torch.stack([expected[key][1][name] for key in keys])
            torch.testing.assert_close(x, right, rtol=1e-4, atol=1e-4)
        assert not seen & set(keys)
        seen |= set(keys)
    assert seen == set(expected)


def test_activations_keep_the_dtype_of_the_model(neox_folder, neox, make_rows):
    batch = make_rows(neox, TEXTS, 16).batch(np.arange(3))
    for dtype in ("bfloat16", "float16"):
        lm = type(neox)(str(neox_folder), dtype=dtype, device="cpu")
        [x] = capture_text(lm, batch, ["gpt_neox.layers.1"]).values()
        assert x.dtype == getattr(torch, dtype)
        [expected] = capture_text(neox, batch, ["gpt_neox.layers.1"]).values()
        assert (x.float() - expected).norm() < 0.03 * expected.norm()
