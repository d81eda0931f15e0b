"""GPT, GPT-2 and the modern decoders against transformers: hidden states, logits, gradients, decoding step by step, and the way back.

Weights have a standard deviation of 0.6, biases and norms, too. Differences are in parts of the largest value; what is measured is 1e-6.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.load import load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.translate import export_config, read_config

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

pytestmark = pytest.mark.parity

STD = 0.6
CLOSE = 1e-5
GPT = {"vocab_size": 31, "n_embd": 21, "n_layer": 3, "n_head": 3, "n_positions": 19}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
MODERN = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 17, "num_hidden_layers": 3, "num_attention_heads": 6,
          "num_key_value_heads": 2, "max_position_embeddings": 37, **ENDS}  # fmt: skip
CASES = {
    "gpt causal": ("OpenAIGPTLMHeadModel", GPT),
    "gpt one layer": ("OpenAIGPTLMHeadModel", GPT | {"n_layer": 1, "n_head": 7, "afn": "silu", "layer_norm_epsilon": 1e-3}),
    "gpt untied": ("OpenAIGPTLMHeadModel", GPT | {"tie_word_embeddings": False, "afn": "relu"}),
    "gpt backbone": ("OpenAIGPTModel", GPT | {"n_head": 1}),
    "gpt2 causal": ("GPT2LMHeadModel", GPT | ENDS | {"n_inner": 29}),
    "gpt2 untied": ("GPT2LMHeadModel", GPT | ENDS | {"tie_word_embeddings": False, "activation_function": "gelu", "n_head": 7}),
    "gpt2 untied backbone": ("GPT2Model", GPT | ENDS | {"tie_word_embeddings": False, "n_layer": 1, "layer_norm_epsilon": 1e-3}),
    "llama causal": ("LlamaForCausalLM", MODERN),
    "llama 3": ("LlamaForCausalLM", MODERN | {
        "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 17,
        }}),
    "llama linear": ("LlamaForCausalLM", MODERN | {"head_dim": 10, "num_key_value_heads": 6, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama backbone": ("LlamaModel", MODERN | {"num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "mistral window": ("MistralForCausalLM", MODERN | {"sliding_window": 4}),
    "mistral full": ("MistralForCausalLM", MODERN | {"sliding_window": None, "head_dim": 6, "tie_word_embeddings": True}),
    "mistral backbone": ("MistralModel", MODERN | {"sliding_window": 5, "num_key_value_heads": 3, "hidden_act": "gelu_new"}),
    "qwen2 causal": ("Qwen2ForCausalLM", MODERN),
    "qwen2 windows": ("Qwen2ForCausalLM", MODERN | {
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2ForCausalLM", MODERN | {"num_attention_heads": 2, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 19}}),
    "qwen3 causal": ("Qwen3ForCausalLM", MODERN | {"head_dim": 10}),
    "qwen3 in turn": ("Qwen3ForCausalLM", MODERN | {
        "head_dim": 4, "use_sliding_window": True, "sliding_window": 3, "attention_bias": True, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen3 yarn": ("Qwen3ForCausalLM", MODERN | {"head_dim": 8, "rms_norm_eps": 1e-3, "hidden_act": "relu", "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50.0, "factor": 2.5, "beta_fast": 4, "beta_slow": 0.2,
        "original_max_position_embeddings": 19, "attention_factor": 1.3}}),
}  # fmt: skip
ONE_A_FAMILY = ["gpt causal", "gpt2 causal", "llama 3", "mistral window", "qwen2 windows", "qwen3 in turn"]


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits(cases, name):
    case = cases(name)
    ours = load_model(case.folder)
    assert ("lm" in ours.heads) == ("backbone" not in name or ours.config.tie_embeddings)
    assert case.far(ours) <= CLOSE


@pytest.mark.parametrize("name", CASES)
def test_gradients(cases, name):
    cases(name).compare_gradients(load_model(cases(name).folder, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in CASES if "backbone" not in name])
def test_transformers_opens_what_we_save(cases, name, tmp_path):
    cases(name).returns(tmp_path / "out")


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_step_by_step_is_at_once(cases, name):
    model = load_model(cases(name).folder)
    ids = cases(name).ids
    with torch.no_grad():
        whole = model(ids).logits
        cache = model.new_cache()
        steps = [model(ids[:, :4], cache=cache).logits]
        steps += [model(ids[:, i], cache=cache).logits for i in range(4, 11)]
    stepped = torch.cat([step.view(3, -1, 31) for step in steps], 1)
    assert (stepped - whole).abs().max() <= CLOSE * max(1, whole.abs().max())


# planted faults

@pytest.mark.parametrize("name", ONE_A_FAMILY)
@pytest.mark.parametrize("layer", [0, 2])
def test_a_detached_key_is_found(cases, name, layer):
    """The outputs are right, a gradient is not."""
    ours = load_model(cases(name).folder, dtype=torch.float64)
    keys = ours.config.keys * ours.config.width

    def detach(module: torch.nn.Module, inputs: object, output: Tensor) -> Tensor:
        q, k, v = output.split([output.shape[-1] - 2 * keys, keys, keys], -1)
        return torch.cat((q, k.detach(), v), -1)

    ours.layers[layer].attention.project.register_forward_hook(detach)
    with pytest.raises(AssertionError, match=r"k_proj\.weight|c_attn\.weight"):
        cases(name).compare_gradients(ours)


@pytest.mark.parametrize("name", ["gpt causal", "gpt2 causal", "llama linear", "mistral full", "qwen2 yarn", "qwen3 causal"])
def test_exchanged_queries_and_keys_are_found(cases, name, tmp_path):
    def spoil(tensors: dict[str, Tensor]) -> None:
        if name.startswith("gpt"):
            place = next(key for key in tensors if key.endswith("h.0.attn.c_attn.weight"))
            q, k, v = tensors[place].chunk(3, 1)
            tensors[place] = torch.cat((k, q, v), 1)
        else:
            q, k = (next(key for key in tensors if key.endswith(f"layers.0.self_attn.{one}_proj.weight")) for one in "qk")
            rows = len(tensors[k])                                 # with fewer keys: as many of the queries
            tensors[q], tensors[k] = torch.cat((tensors[k], tensors[q][rows:])), tensors[q][:rows].clone()

    assert cases(name).far(load_model(cases(name).spoiled(tmp_path / "m", spoil))) > 100 * CLOSE


@pytest.mark.parametrize(("name", "changes"), [
    ("llama causal", {"name": "rotary", "layout": "pairs"}), ("llama 3", {"name": "rotary", "layout": "half", "theta": 500.0}),
    ("llama linear", {"name": "rotary_interpolated", "layout": "half", "factor": 2.1}),
    ("qwen2 yarn", {"name": "rotary_yarn", "layout": "half", "theta": 50.0, "factor": 4.0}),
    ("qwen3 yarn", {"name": "rotary_yarn", "layout": "half", "theta": 50.0, "factor": 2.5, "original_length": 19, "temperature": 1.3}),
])  # fmt: skip
def test_other_rotary_positions_are_found(cases, name, changes):
    assert cases(name).far(load_model(cases(name).folder, position=changes)) > 100 * CLOSE


@pytest.mark.parametrize(("name", "window"), [("mistral window", 4), ("mistral window", 2), ("qwen2 windows", 2), ("qwen3 in turn", 2)])
def test_a_window_of_another_width_or_in_all_layers_is_found(cases, name, window):
    model = load_model(cases(name).folder, mask={"name": "causal", "window": window})
    assert cases(name).far(model) > 100 * CLOSE


# configurations

def test_rope_as_transformers_4_wrote_it():
    """rope_theta and rope_scaling beside each other, its kind under "type"."""
    scaling = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = read_config({"rope_theta": 500000.0, "rope_scaling": scaling}, FAMILIES["llama"])
    assert config.position == {
        "name": "rotary_llama3", "layout": "half", "theta": 500000.0, "factor": 8.0, "low_frequency_factor": 1.0,
        "high_frequency_factor": 4.0, "original_length": 8192,
    }  # fmt: skip
    plain = read_config({"rope_theta": 1e6, "rope_scaling": None}, FAMILIES["qwen2"])
    assert plain.position == {"name": "rotary", "layout": "half", "theta": 1e6}


def test_null_is_no_window_and_as_many_keys_as_queries():
    """Mistral 0.2 and later; a field that is missing has transformers' default."""
    family = FAMILIES["mistral"]
    assert read_config({}, family).mask == {"name": "causal", "window": 4095}
    assert read_config({"sliding_window": None}, family).mask == "causal"
    assert read_config({}, family).keys == 8 and read_config({"num_key_value_heads": None}, family).keys == 32
    written = export_config(read_config({"sliding_window": None}, family), family)
    assert written is not None and written["sliding_window"] is None


@pytest.mark.parametrize(("name", "values", "said"), [
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type of rope_parameters is 'dynamic'"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, "'mscale'"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
    ("llama", {"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    ("llama", {"partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
    ("llama", {"rope_theta": "big"}, "rope_theta is 'big'"), ("llama", {"attention_bias": 1}, "attention_bias is 1"),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("qwen3", {"num_hidden_layers": 2, "layer_types": ["full_attention"]}, "layer_types is"),
    ("qwen3", {"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, "layer_types is"),
    ("qwen2", {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}, "no sliding_window"),
    ("gpt", {"afn": "gelu_new"}, "activation is 'gelu_new'"),
])  # fmt: skip
def test_what_we_do_not_compute_is_refused(name, values, said):
    with pytest.raises(ConfigError, match=said):
        read_config(values, FAMILIES[name])


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("changes", [
    {"position": {"name": "rotary", "layout": "pairs"}}, {"position": "rotary_ntk"}, {"mask": "full"}, {"qk_norm": True},
    {"biases": ("output",)},
    {"norm": {"name": "rms", "scale": False}}, {"activation": "gelu"}, {"residual_scores": True}, {"head_size": 8, "position": "none"},
    {"mask": ("causal", {"name": "causal", "window": 2}, {"name": "causal", "window": 3})}, {"heads": ({"name": "lm", "bias": True},)},
    {"heads": ({"name": "lm", "scale": 0.5},)},
])  # fmt: skip
def test_what_transformers_would_compute_otherwise_is_ours(tiny, name, changes):
    config = tiny(FAMILIES[name]).change({"layers": 3})
    assert export_config(config, FAMILIES[name]) is not None
    if name != "qwen3" or changes != {"qk_norm": True}:
        assert export_config(config.change(changes), FAMILIES[name]) is None


def test_dropout_and_defaults_spelled_out_change_nothing(tiny):
    config = tiny(FAMILIES["llama"]).change({"dropout": 0.3, "norm": {"name": "rms", "eps": 1e-6, "scale": True}})
    written = export_config(config, FAMILIES["llama"])
    assert written is not None and written["model_type"] == "llama" and written["fishpaw"]["dropout"] == 0.3


@pytest.mark.parametrize(("name", "values", "count"), [
    ("gpt", {}, 116_534_784), ("gpt2", {}, 124_439_808), ("llama", {}, 6_738_415_616),
    ("llama", {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8,
               "head_dim": 64, "tie_word_embeddings": True}, 1_235_814_400),
    ("mistral", {}, 7_241_732_096),
    ("qwen2", {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
               "tie_word_embeddings": True}, 494_032_768),
    ("qwen3", {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
               "tie_word_embeddings": True}, 596_049_920),
])  # fmt: skip
def test_published_sizes_have_as_many_parameters_as_published(name, values, count):
    """GPT, GPT-2, Llama 2 7B, Llama 3.2 1B, Mistral 7B, Qwen2.5 0.5B, Qwen3 0.6B; without memory."""
    with torch.device("meta"):
        model = Transformer(read_config(values, FAMILIES[name]).change({"heads": ("lm",)}))
    assert sum(value.numel() for value in model.parameters()) == count
