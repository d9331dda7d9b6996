import pytest
import torch
import transformers

from ssae.language_model.frozen import LanguageModel
from ssae.sae.topk import TopKSAE

BLOCKS = {"neox": "gpt_neox.layers", "llama": "model.layers"}
ATTENTION = {"neox": "attention", "llama": "self_attn"}
NORMS = {"neox": "gpt_neox.final_layer_norm", "llama": "model.norm"}


@pytest.fixture(params=["neox", "llama"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def lm(kind, request) -> LanguageModel:
    return request.getfixturevalue(kind)


@pytest.fixture
def plain(kind, request):
    """The same model, loaded by transformers alone."""
    folder = request.getfixturevalue(f"{kind}_folder")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_capture_gives_the_hidden_states_of_transformers(kind, lm, plain, ids):
    # hidden_states[i] enters block i; the last one is after the final norm.
    hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states
    num_blocks = len(hidden) - 1
    for index in range(num_blocks - 1):
        found = lm.capture(ids, f"{BLOCKS[kind]}.{index}")
        torch.testing.assert_close(found, hidden[index + 1], rtol=1e-5, atol=1e-5)
    last = lm.capture(ids, f"{BLOCKS[kind]}.{num_blocks - 1}")
    norm = plain.get_submodule(NORMS[kind])
    torch.testing.assert_close(norm(last), hidden[-1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(last, hidden[-1], atol=1e-2)
    torch.testing.assert_close(
        lm.capture(ids, NORMS[kind]), hidden[-1], rtol=1e-5, atol=1e-5
    )  # fmt: skip


def test_the_forward_stops_at_the_hookpoint(kind, lm, ids):
    called = []
    blocks = lm.model.get_submodule(BLOCKS[kind])
    assert isinstance(blocks, torch.nn.ModuleList)
    handles = [
        block.register_forward_pre_hook(lambda *_, index=index: called.append(index))
        for index, block in enumerate(blocks)
    ]
    try:
        lm.capture(ids, f"{BLOCKS[kind]}.0")
        assert called == [0]
        lm.splice(ids, f"{BLOCKS[kind]}.0", lambda x: x)
        assert called == [0, *range(len(blocks))]
    finally:
        for handle in handles:
            handle.remove()


def test_several_hookpoints_in_one_forward_give_what_each_gives_alone(kind, lm, plain, ids):
    block = BLOCKS[kind]
    hookpoints = [f"{block}.1", f"{block}.0.mlp", f"{block}.1.{ATTENTION[kind]}", f"{block}.0"]
    calls = []
    handle = lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    found = lm.capture_all(ids, hookpoints)
    handle.remove()
    assert len(calls) == 1
    assert list(found) == hookpoints
    outputs = {}
    for hookpoint in hookpoints:
        plain.get_submodule(hookpoint).register_forward_hook(
            lambda module, args, output, hookpoint=hookpoint: outputs.update(
                {hookpoint: output if isinstance(output, torch.Tensor) else output[0]}
            )
        )
    with torch.no_grad():
        plain(input_ids=ids)
    for hookpoint, x in found.items():
        assert torch.equal(x, outputs[hookpoint])
        assert torch.equal(x, lm.capture(ids, hookpoint))


def test_the_forward_stops_after_the_last_of_several_hookpoints(neox, ids):
    called = []
    handles = [
        neox.model.get_submodule(f"gpt_neox.layers.{index}{part}").register_forward_pre_hook(
            lambda *_, name=f"{index}{part}": called.append(name)
        )
        for index in range(3)
        for part in ("", ".attention", ".mlp")
    ]
    try:
        neox.capture_all(ids, ["gpt_neox.layers.1.attention", "gpt_neox.layers.0.mlp"])
        assert called == ["0", "0.attention", "0.mlp", "1", "1.attention"]
    finally:
        for handle in handles:
            handle.remove()


def test_what_was_captured_does_not_follow_later_changes_in_place(neox, ids):
    expected = neox.capture(ids, "gpt_neox.layers.0")
    block = neox.model.get_submodule("gpt_neox.layers.1")
    handle = block.register_forward_pre_hook(lambda _, args: (args[0].add_(1), None)[1])
    try:
        found = neox.capture_all(ids, ["gpt_neox.layers.0", "gpt_neox.layers.1"])
    finally:
        handle.remove()
    assert torch.equal(found["gpt_neox.layers.0"], expected)
    assert not torch.equal(found["gpt_neox.layers.1"], neox.capture(ids, "gpt_neox.layers.1"))


def test_an_sae_learns_from_what_was_captured(neox, ids):
    x = neox.capture(ids, "gpt_neox.layers.1")
    assert not x.is_inference()
    x[0, 0] += 1  # an ordinary tensor
    torch.manual_seed(0)
    sae = TopKSAE(16, 32, k=4, auxk_coefficient=0.0, k_aux=1)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (sae(x.flatten(0, 1)).recon - x.flatten(0, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["neox", "llama", "mistral", "bert", "t5"])
def test_rows_padded_on_the_right_give_what_they_give_alone(name, request, ids):
    lm = request.getfixturevalue(name)
    lengths = [17, 5, 11]  # mistral's window is 8
    mask = (torch.arange(17) < torch.tensor(lengths)[:, None]).long()
    hookpoints = [lm.resolve("auto"), lm.resolve("auto").replace("1", "0")]
    padded = lm.capture_all(ids * mask, hookpoints, mask)
    for row, length in enumerate(lengths):
        alone = lm.capture_all(ids[row : row + 1, :length], hookpoints)
        for hookpoint in hookpoints:
            found = padded[hookpoint][row : row + 1, :length]
            torch.testing.assert_close(found, alone[hookpoint], rtol=1e-4, atol=1e-4)
    if name in ("bert", "t5"):  # they look to the right
        without = lm.capture(ids * mask, hookpoints[0])
        assert (without[1, :5] - padded[hookpoints[0]][1, :5]).abs().max() > 0.01
    else:
        logits = lm.splice(ids * mask, hookpoints[0], lambda x: x, mask)
        alone = lm.splice(ids[1:2, :5], hookpoints[0], lambda x: x)
        torch.testing.assert_close(logits[1:2, :5], alone, rtol=1e-4, atol=1e-4)


def test_no_hookpoint_and_the_same_one_twice_are_refused(neox, ids):
    with pytest.raises(ValueError, match="hookpoints must name at least one module"):
        neox.capture_all(ids, [])
    for twice in (["gpt_neox.layers.1"] * 2, ["gpt_neox.layers.1", "auto"]):
        with pytest.raises(ValueError, match="is given twice"):
            neox.capture_all(ids, twice)
    with pytest.raises(ValueError, match="nearest"):
        neox.capture_all(ids, ["gpt_neox.layers.1", "gpt_neox.layer.2"])


def test_a_module_that_takes_no_part_is_refused(t5, ids):
    with pytest.raises(ValueError, match=r"'decoder\.block\.1' takes no part"):
        t5.capture(ids, "decoder.block.1")
    assert not t5.model.get_submodule("decoder.block.1")._forward_hooks


@torch.no_grad()
def test_an_encoder_gives_the_hidden_states_of_transformers(bert, t5, ids):
    plain = transformers.AutoModel.from_pretrained(bert.name).eval()
    hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states
    for index in range(3):
        found = bert.capture(ids, f"encoder.layer.{index}")
        torch.testing.assert_close(found, hidden[index + 1], rtol=1e-5, atol=1e-5)
    assert bert.resolve("auto") == "encoder.layer.1"
    plain = transformers.T5EncoderModel.from_pretrained(t5.name).eval()
    hidden = plain(input_ids=ids, output_hidden_states=True).hidden_states
    found = t5.capture(ids, "encoder.block.0")
    torch.testing.assert_close(found, hidden[1], rtol=1e-5, atol=1e-5)


def test_splicing_into_an_encoder_is_refused(bert, t5, ids):
    for lm in (bert, t5):
        with pytest.raises(ValueError, match="needs a causal language model, got .*set language_m"):
            lm.splice(ids, "auto", lambda x: x)


@torch.no_grad()
def test_splicing_the_identity_gives_the_plain_logits(kind, lm, plain, ids):
    expected = plain(input_ids=ids).logits
    for hookpoint in (f"{BLOCKS[kind]}.0", f"{BLOCKS[kind]}.1", NORMS[kind]):
        found = lm.splice(ids, hookpoint, lambda x: x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_splicing_at_the_last_block_equals_the_head_on_the_replaced_activations(
    kind, lm, plain, ids
):
    last = f"{BLOCKS[kind]}.{plain.config.num_hidden_layers - 1}"
    found = lm.splice(ids, last, lambda x: 2 * x.flip(1) + 1)
    replaced = 2 * lm.capture(ids, last).flip(1) + 1
    expected = plain.get_output_embeddings()(plain.get_submodule(NORMS[kind])(replaced))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_hooks_are_gone_afterwards_also_after_an_error(kind, lm, ids):
    hookpoint = f"{BLOCKS[kind]}.0"
    before = lm.splice(ids, hookpoint, lambda x: x)

    def fail(x):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        lm.splice(ids, hookpoint, fail)
    lm.capture(ids, hookpoint)
    assert not lm.model.get_submodule(hookpoint)._forward_hooks
    assert torch.equal(lm.splice(ids, hookpoint, lambda x: x), before)


def test_a_hookpoint_that_does_not_exist_is_refused_with_the_nearest_ones(neox, llama):
    with pytest.raises(ValueError, match=r"nearest: .*gpt_neox\.layers\.1.*0 \.\. .*layers\.2"):
        neox.resolve("gpt_neox.layer.1")
    with pytest.raises(ValueError, match=r"model\.layers\.0 \.\. model\.layers\.1; set hookpoint="):
        llama.resolve("transformer.h.0")
    with pytest.raises(ValueError, match="is not a module"):
        neox.resolve("")


def test_a_list_of_blocks_is_refused_because_it_has_no_output(kind, lm):
    with pytest.raises(ValueError, match=rf"is a list, .*blocks: {BLOCKS[kind]}\.0"):
        lm.resolve(BLOCKS[kind])


def test_auto_is_the_block_at_half_depth_and_a_name_stays_itself(neox, llama, t5):
    lists = {n: m for n, m in t5.model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    assert len(lists["decoder.block.0.layer"]) > len(lists["encoder.block"])
    assert t5.resolve("auto") == "encoder.block.1"
    assert neox.resolve("auto") == "gpt_neox.layers.1"
    assert llama.resolve("auto") == "model.layers.1"
    assert llama.resolve("model.layers.0.mlp") == "model.layers.0.mlp"


def test_a_module_that_gives_no_activations_is_refused(neox):
    ids = torch.randint(10, 200, (2, 8))
    with pytest.raises(ValueError, match="not \\(batch, length, d_in\\)"):
        neox.capture(ids, "gpt_neox.rotary_emb")


def test_capture_explains_a_hookpoint_that_is_not_there_and_takes_auto(neox):
    ids = torch.randint(10, 200, (2, 8))
    with pytest.raises(ValueError, match="gpt_neox.layers.1"):
        neox.capture(ids, "gpt_neox.layers.9")
    assert torch.equal(neox.capture(ids, "auto"), neox.capture(ids, neox.resolve("auto")))
