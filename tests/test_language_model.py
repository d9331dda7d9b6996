import shutil
from pathlib import Path

import pytest
import torch
import transformers

from ssae.language_model import LanguageModel

BLOCKS = {"neox": "gpt_neox.layers", "llama": "model.layers"}
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
    with pytest.raises(ValueError, match=rf"blocks: {BLOCKS[kind]}\.0"):
        lm.resolve(BLOCKS[kind])


def test_auto_is_the_block_at_half_depth_and_a_name_stays_itself(neox, llama):
    assert neox.resolve("auto") == "gpt_neox.layers.1"
    assert llama.resolve("auto") == "model.layers.1"
    assert llama.resolve("model.layers.0.mlp") == "model.layers.0.mlp"


def test_a_directory_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load language model .*set language_model\.name"):
        _ = LanguageModel(str(tmp_path / "nowhere"), device="cpu").model
    with pytest.raises(ValueError, match="cannot load language model"):
        _ = LanguageModel(str(tmp_path / "nowhere"), device="cpu").tokenizer


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="must be one of auto, float32.*got 'int8'"):
        LanguageModel("anything", dtype="int8")


def test_a_directory_with_pickled_weights_only_is_refused(neox_folder, tmp_path, plain_pickle):
    folder = tmp_path / "pickled"
    shutil.copytree(neox_folder, folder)
    (folder / "model.safetensors").unlink()
    shutil.copy(plain_pickle, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        _ = LanguageModel(str(folder), device="cpu").model


@pytest.fixture
def plain_pickle(neox, tmp_path) -> Path:
    torch.save(neox.model.state_dict(), tmp_path / "weights.bin")
    return tmp_path / "weights.bin"


def test_the_dtype_is_the_stored_one_or_the_one_asked_for(neox, neox_folder, ids):
    assert neox.capture(ids, "gpt_neox.layers.0").dtype == torch.float32
    half = LanguageModel(str(neox_folder), dtype="bfloat16", device="cpu")
    found = half.capture(ids, "gpt_neox.layers.0")
    assert found.dtype == torch.bfloat16
    expected = neox.capture(ids, "gpt_neox.layers.0")
    error = (found.float() - expected).norm() / expected.norm()
    assert 0 < error < 0.03
    logits = half.splice(ids, "gpt_neox.layers.0", lambda x: x.float())  # any dtype may come back
    assert logits.dtype == torch.bfloat16


def test_the_model_is_in_eval_mode_without_gradients(lm):
    assert not lm.model.training
    assert not any(weight.requires_grad for weight in lm.model.parameters())


def test_vocabulary_and_special_tokens_are_those_of_the_tokenizer(neox, llama):
    assert (neox.vocab_size, neox.special_ids.tolist()) == (300, [0])
    assert llama.vocab_size == 300
    assert llama.special_ids.tolist() == [0, 1, 2]


def test_the_identity_follows_the_bytes_of_a_directory_and_not_its_place(neox_folder, tmp_path):
    shutil.copytree(neox_folder, tmp_path / "copy")
    copy = LanguageModel(str(tmp_path / "copy"))
    original = LanguageModel(str(neox_folder))
    assert copy.identity() == original.identity()
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text() + " ")
    assert copy.identity() != original.identity()
    assert LanguageModel(str(neox_folder), dtype="float16").identity() != original.identity()


def test_a_module_that_gives_no_activations_is_refused(neox):
    ids = torch.randint(10, 200, (2, 8))
    with pytest.raises(ValueError, match="not \\(batch, length, d_in\\)"):
        neox.capture(ids, "gpt_neox.rotary_emb")


def test_capture_explains_a_hookpoint_that_is_not_there_and_takes_auto(neox):
    ids = torch.randint(10, 200, (2, 8))
    with pytest.raises(ValueError, match="gpt_neox.layers.1"):
        neox.capture(ids, "gpt_neox.layers.9")
    assert torch.equal(neox.capture(ids, "auto"), neox.capture(ids, neox.resolve("auto")))
