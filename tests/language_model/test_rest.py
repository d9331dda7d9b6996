import pytest
import torch

from ssae.language_model.rest import rest_of


@pytest.mark.parametrize("model", ["neox", "llama", "bert"])
def test_only_the_blocks_behind_an_sae_run(model, request):
    """And a block that is edited whole gives what a whole pass gives."""
    lm = request.getfixturevalue(model)
    blocks = lm.resolve("auto").rpartition(".")[0]
    first, last = f"{blocks}.0", f"{blocks}.{len(lm.model.get_submodule(blocks)) - 1}"
    ids = torch.randint(5, 290, (3, 7), generator=torch.Generator().manual_seed(0))
    x = lm.capture(ids, first)
    ran = []
    inside = next(lm.model.get_submodule(first).children())
    handle = inside.register_forward_hook(lambda *_: ran.append(1))
    with rest_of(lm, first, last), torch.no_grad():
        ran.clear()
        found = lm.capture_spliced(ids, last, {first: lambda _: x})
        assert not ran
    torch.testing.assert_close(found, lm.capture(ids, last))
    assert ran  # what was put aside is back
    handle.remove()


def test_what_is_no_block_skips_nothing(neox):
    ran = []
    first = neox.model.get_submodule("gpt_neox.layers.0")
    handle = first.attention.register_forward_hook(lambda *_: ran.append(1))
    ids = torch.ones(1, 4, dtype=torch.int64)
    with rest_of(neox, "gpt_neox.layers.1.mlp", "gpt_neox.layers.2"), torch.no_grad():
        neox.capture_spliced(ids, "gpt_neox.layers.2", {"gpt_neox.layers.1.mlp": lambda x: x})
    assert ran
    handle.remove()
