"""What is loaded, where it goes, and what is refused."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from ssae.language_model.frozen import LanguageModel
from ssae.language_model.pretrained import has_causal_head

HOOKPOINTS = ["gpt_neox.layers.1", "gpt_neox.layers.0.mlp", "gpt_neox.layers.0.attention"]
DOCSTRINGS_LM = str(Path(__file__).parents[2] / "ssae" / "models" / "docstrings_lm")


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))


def test_a_directory_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load language model .*set language_model\.name"):
        _ = LanguageModel(str(tmp_path / "nowhere"), device="cpu").model
    with pytest.raises(ValueError, match="cannot load language model"):
        _ = LanguageModel(str(tmp_path / "nowhere"), device="cpu").tokenizer


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


def test_the_model_is_in_eval_mode_without_gradients(neox, bert):
    for lm in (neox, bert):
        assert not lm.model.training
        assert not any(weight.requires_grad for weight in lm.model.parameters())


def test_vocabulary_and_special_tokens_are_those_of_the_tokenizer(neox, llama):
    assert (neox.vocab_size, neox.special_ids.tolist()) == (300, [0])
    assert llama.vocab_size == 300
    assert llama.special_ids.tolist() == [1, 2]  # 0 stands for unknown words: text


def test_the_identity_follows_the_bytes_of_a_directory_and_not_its_place(neox_folder, tmp_path):
    shutil.copytree(neox_folder, tmp_path / "copy")
    copy = LanguageModel(str(tmp_path / "copy"))
    original = LanguageModel(str(neox_folder))
    assert copy.identity() == original.identity()
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text() + " ")
    assert copy.identity() != original.identity()
    assert LanguageModel(str(neox_folder), dtype="float16").identity() != original.identity()


@pytest.mark.parametrize(
    ("architectures", "causal"),
    [
        (["GPTNeoXForCausalLM"], True), (["GPT2LMHeadModel"], True), (["BertLMHeadModel"], True),
        (["Gemma3ForConditionalGeneration"], True), (["NewForCausalLM"], True),
        (["BertForMaskedLM"], False), (["BertModel"], False), (["GPTNeoXModel"], False),
        (["T5ForConditionalGeneration"], False), ([], False), (None, False),
    ],
)  # fmt: skip
def test_the_architecture_says_whether_next_tokens_are_predicted(architectures, causal):
    config = transformers.PreTrainedConfig(architectures=architectures)
    assert has_causal_head(config) is causal


def test_an_encoder_is_refused_where_predictions_are_compared(bert, neox):
    neox.check_causal()
    with pytest.raises(
        ValueError, match=r"causal language model, got .*BertForMaskedLM.*set langu"
    ):
        bert.check_causal()


def test_weights_that_are_missing_are_not_drawn_at_random(neox_folder, bert, tmp_path):
    folder = shutil.copytree(neox_folder, tmp_path / "incomplete")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers\.1\.mlp\.dense_4h_to_h\.bias"):
        _ = LanguageModel(str(folder), device="cpu").model
    assert "pooler" in dict(bert.model.named_children())  # missing too, but no text reaches it


def test_code_that_lies_beside_the_weights_is_not_run(neox_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks gets a yes
    folder = shutil.copytree(neox_folder, tmp_path / "code")
    marker = tmp_path / "marker"
    (folder / "modeling.py").write_text(f"open({str(marker)!r}, 'w').close()")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard_of"
    config["auto_map"] = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.LM"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load language model"):
        _ = LanguageModel(str(folder), device="cpu").model
    assert not marker.exists()


def test_a_spread_model_gives_the_bits_of_a_plain_one(neox, neox_folder, ids):
    expected = neox.capture_all(ids, HOOKPOINTS)
    logits = neox.splice(ids, HOOKPOINTS[0], torch.neg)
    for device_map in ("cpu", "auto", {"": "cpu"}):
        lm = LanguageModel(str(neox_folder), device_map=device_map)
        if device_map == "auto" and torch.cuda.is_available():
            continue  # then it means another device
        for hookpoint, x in lm.capture_all(ids, HOOKPOINTS).items():
            assert torch.equal(x, expected[hookpoint])
        assert torch.equal(lm.splice(ids, HOOKPOINTS[0], torch.neg), logits)
        assert lm.device_used == "cpu"
        assert lm.identity() == neox.identity()


def test_a_model_that_lies_partly_on_disk_stays_whole_after_an_early_stop(neox, neox_folder, ids):
    device_map = {name: "cpu" for name, _ in neox.model.named_children()}
    del device_map["gpt_neox"]
    device_map |= {f"gpt_neox.{name}": "cpu" for name, _ in neox.model.gpt_neox.named_children()}
    del device_map["gpt_neox.layers"]
    device_map |= {f"gpt_neox.layers.{index}": "cpu" for index in range(3)}
    device_map["gpt_neox.layers.0"] = "disk"
    lm = LanguageModel(str(neox_folder), device_map=device_map)
    expected = neox.capture_all(ids, HOOKPOINTS)
    for _ in range(2):
        for hookpoint, x in lm.capture_all(ids, HOOKPOINTS).items():
            assert torch.equal(x, expected[hookpoint])


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def quantised(request) -> LanguageModel:
    pytest.importorskip("bitsandbytes")
    return LanguageModel(DOCSTRINGS_LM, device="cpu", quantization=request.param)


@pytest.fixture(scope="module")
def trained() -> LanguageModel:
    return LanguageModel(DOCSTRINGS_LM, device="cpu")


@pytest.fixture
def text(trained) -> torch.Tensor:
    sentence = "Return the mean of the distribution, an array of shape (n, d)."
    return torch.tensor([trained.tokenizer(sentence)["input_ids"]])


def test_a_quantised_model_gives_nearly_the_same_activations(quantised, trained, text):
    linear = {type(module).__name__ for module in quantised.model.modules()}
    wanted = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
    assert wanted[quantised.quantization] in linear
    expected = trained.capture_all(text, HOOKPOINTS)
    for hookpoint, x in quantised.capture_all(text, HOOKPOINTS).items():
        assert x.dtype == torch.float32
        pair = torch.stack([x.flatten(), expected[hookpoint].flatten()])
        correlation = torch.corrcoef(pair)[0, 1]
        assert 0.95 < correlation < 0.9999999
    spliced = quantised.splice(text, HOOKPOINTS[0], lambda x: x)
    logits = trained.splice(text, HOOKPOINTS[0], lambda x: x)
    assert torch.nn.functional.cosine_similarity(spliced, logits, dim=-1).min() > 0.9


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("device_map", ["cuda:0", {"": 0}])
def test_a_map_to_a_gpu_that_is_not_there_is_refused(neox_folder, device_map):
    lm = LanguageModel(str(neox_folder), device_map=device_map)
    with pytest.raises(ValueError, match=r"torch sees no GPU; set language_model\.device_map=auto"):
        _ = lm.model


@pytest.fixture(scope="module", params=[24, 96])
def awkward_folder(request, tmp_path_factory) -> Path:
    """A model of a width that bitsandbytes cannot multiply in 4bit on every CPU."""
    folder = tmp_path_factory.mktemp("awkward")
    config = transformers.GPTNeoXConfig(
        vocab_size=300, hidden_size=request.param, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)
    return folder


def test_4bit_of_a_width_that_a_cpu_cannot_multiply_is_refused_or_runs(awkward_folder, ids):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    lm = LanguageModel(str(awkward_folder), device="cpu", quantization="4bit")
    if bitsandbytes.functional.has_avx512bf16():
        rule = (
            r"model .*awkward.* does not run in 4bit on this CPU: bitsandbytes .*"
            r"set language_model\.device=cuda, language_model\.quantization=8bit or "
            r"language_model\.quantization=null$"
        )
        with pytest.raises(ValueError, match=rule):
            _ = lm.model
    else:
        assert lm.capture(ids, "gpt_neox.layers.0").isfinite().all()
    eight = LanguageModel(str(awkward_folder), device="cpu", quantization="8bit")
    assert eight.capture(ids, "gpt_neox.layers.0").isfinite().all()


def test_asking_for_4bit_leaves_random_numbers_as_they_are(trained):
    pytest.importorskip("bitsandbytes")
    before = torch.get_rng_state()
    _ = LanguageModel(DOCSTRINGS_LM, device="cpu", quantization="4bit").model
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_stored_quantised_is_used_as_it_is(quantised, text, tmp_path):
    quantised.model.save_pretrained(tmp_path)
    stored = LanguageModel(str(tmp_path), device="cpu")
    for hookpoint, x in quantised.capture_all(text, HOOKPOINTS).items():
        assert torch.equal(stored.capture(text, hookpoint), x)
    again = LanguageModel(str(tmp_path), device="cpu", quantization="4bit")
    with pytest.raises(
        ValueError, match=r"quantised already.*set language_model\.quantization=null"
    ):
        _ = again.model


def test_quantisation_is_part_of_the_identity_and_the_device_is_not(neox_folder):
    plain = LanguageModel(str(neox_folder)).identity()
    eight = LanguageModel(str(neox_folder), quantization="8bit").identity()
    four = LanguageModel(str(neox_folder), quantization="4bit").identity()
    assert plain != eight != four != plain
    assert LanguageModel(str(neox_folder), device="cpu").identity() == plain
    assert LanguageModel(str(neox_folder), device_map="auto").identity() == plain
    assert LanguageModel(str(neox_folder), quantization="8bit").tokenizer_identity() == (
        LanguageModel(str(neox_folder)).tokenizer_identity()
    )


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("accelerate", {"device_map": "auto"}),
        ("accelerate", {"quantization": "8bit"}),
        ("bitsandbytes", {"quantization": "4bit"}),
    ],
)
def test_a_package_that_is_not_installed_is_named(neox_folder, monkeypatch, package, settings):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else found(name)
    )
    with pytest.raises(ValueError, match=rf"needs {package}: pip install {package}"):
        _ = LanguageModel(str(neox_folder), **settings).model


def test_settings_that_contradict_or_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="must be one of auto, float32.*got 'int8'"):
        LanguageModel("anything", dtype="int8")
    with pytest.raises(ValueError, match="must be one of null, 8bit, 4bit, got '2bit'"):
        LanguageModel("anything", quantization="2bit")
    with pytest.raises(
        ValueError,
        match=r"device_map must be null, auto, balanced, .*got 'foo'; set .*device_map=auto",
    ):
        LanguageModel("anything", device_map="foo")
    with pytest.raises(
        ValueError, match=r"device_map .* got \{'b': 'foo'\}; set .*device_map=auto"
    ):
        LanguageModel("anything", device_map={"a": "cpu", "b": "foo", "c": 0, "d": "disk"})
    with pytest.raises(
        ValueError, match=r"device must be auto .*'gpu'; set language_model.device=auto"
    ):
        LanguageModel("anything", device="gpu")
    for device_map in ("auto", "balanced", "balanced_low_0", "sequential", "cpu", "cuda:1"):
        LanguageModel("anything", device_map=device_map)
    with pytest.raises(ValueError, match="already says where .*set language_model.device=auto"):
        LanguageModel("anything", device="cpu", device_map="auto")


@pytest.mark.parametrize(
    ("environment", "num_gpus", "expected"),
    [
        ({}, 1, "cuda:0"),
        ({"LOCAL_RANK": "1"}, 4, "cuda:1"),
        ({"SLURM_LOCALID": "3"}, 4, "cuda:3"),
        ({"LOCAL_RANK": "0", "SLURM_LOCALID": "3"}, 4, "cuda:0"),
        ({"LOCAL_RANK": "3"}, 1, "cuda:0"),  # each rank sees its own GPU only
    ],
)
def test_each_rank_takes_its_own_gpu(monkeypatch, environment, num_gpus, expected):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert LanguageModel("anything").device_used == expected
    assert LanguageModel("anything", device="cpu").device_used == "cpu"


def test_the_longest_row_is_the_one_the_model_has_positions_for(neox, bert, t5, tmp_path):
    assert (neox.max_context_length, bert.max_context_length) == (64, 64)
    assert t5.max_context_length is None  # relative positions
    config = transformers.RobertaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=66,
    )  # fmt: skip
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    roberta = LanguageModel(str(tmp_path), device="cpu")
    assert roberta.max_context_length == 64
    ids = torch.full((1, 65), 5)
    assert roberta.capture(ids[:, :64], "encoder.layer.0").shape == (1, 64, 16)
    with pytest.raises((IndexError, RuntimeError)):
        roberta.capture(ids, "encoder.layer.0")
