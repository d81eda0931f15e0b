"""BERT, RoFormer and GPT-2 against transformers: hidden states, logits, gradients; every way to load; and the way back.

Weights are random with a standard deviation of 0.3: near 0 attention is uniform and hides faults, at 1 and more it is nearly one-hot and
hides them, too. Sizes are primes where the architecture allows. fp32; what is measured is about 1e-6.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fishpaw.model.transformer import Transformer
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.translate import export_tensors

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

pytestmark = pytest.mark.parity

BUNDLES = Path(__file__).resolve().parent / "bundles"
CLOSE = 1e-5
CLOSE_GRADIENTS = 4e-7                                            # fp64, but RoFormer's table of sines is fp32
BERT = {"vocab_size": 31, "hidden_size": 21, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 17,
        "max_position_embeddings": 19}  # fmt: skip
ROFORMER = {**BERT, "hidden_size": 30}
GPT2 = {"vocab_size": 31, "n_embd": 21, "n_layer": 3, "n_head": 3, "n_positions": 19, "bos_token_id": 1, "eos_token_id": 1}
ONE_LAYER = {"num_hidden_layers": 1, "type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
CASES = {
    "bert pretraining": ("BertForPreTraining", BERT),
    "bert mlm": ("BertForMaskedLM", BERT | ONE_LAYER | {"num_attention_heads": 7}),
    "bert untied": ("BertForMaskedLM", BERT | {"tie_word_embeddings": False, "hidden_act": "silu", "layer_norm_eps": 1e-3}),
    "bert classification": ("BertForSequenceClassification", BERT | {"hidden_act": "relu", "num_labels": 5, "type_vocab_size": 3}),
    "bert causal": ("BertLMHeadModel", BERT | {"is_decoder": True}),
    "bert next sentence": ("BertForNextSentencePrediction", BERT | ONE_LAYER),
    "bert backbone": ("BertModel", BERT | {"intermediate_size": 61}),
    "roformer mlm": ("RoFormerForMaskedLM", ROFORMER | {"embedding_size": 13}),
    "roformer classification": ("RoFormerForSequenceClassification", ROFORMER | {"hidden_act": "relu", "num_labels": 3}),
    "roformer causal": ("RoFormerForCausalLM", ROFORMER | ONE_LAYER | {"is_decoder": True, "num_attention_heads": 5}),
    "roformer untied": ("RoFormerForMaskedLM", ROFORMER | {"tie_word_embeddings": False, "num_attention_heads": 1, "layer_norm_eps": 1e-3}),
    "roformer backbone": ("RoFormerModel", ROFORMER | {"type_vocab_size": 1, "embedding_size": 37}),
    "gpt2 causal": ("GPT2LMHeadModel", GPT2 | {"n_inner": 29}),
    "gpt2 one layer": ("GPT2LMHeadModel", GPT2 | {"n_layer": 1, "n_head": 7, "activation_function": "relu", "layer_norm_epsilon": 1e-3}),
    "gpt2 untied": ("GPT2LMHeadModel", GPT2 | {"tie_word_embeddings": False, "activation_function": "gelu"}),
    "gpt2 backbone": ("GPT2Model", GPT2 | {"n_head": 1}),
}
ONE_A_FAMILY = ["bert pretraining", "roformer mlm", "gpt2 causal"]


@dataclass
class Case:
    theirs: Any
    folder: Path
    ids: Tensor = field(init=False)
    keep: Tensor = field(init=False)
    segments: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(5)
        config = self.theirs.config
        self.ids = torch.randint(0, config.vocab_size, (3, 11), generator=noise)
        self.keep = torch.arange(11) < torch.tensor([[7], [11], [4]])
        kinds = getattr(config, "type_vocab_size", None)
        self.segments = None if kinds is None else torch.randint(0, kinds, (3, 11), generator=noise)

    def ask(self, theirs: Any = None) -> Any:
        more = {} if self.segments is None else {"token_type_ids": self.segments}
        return (theirs or self.theirs)(self.ids, attention_mask=self.keep.long(), output_hidden_states=True, **more)

    def answer(self, ours: Transformer) -> Any:
        return ours(self.ids, padding=self.keep, segments=self.segments, all_hidden=True)

    def pairs(self, theirs: Any, ours: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Theirs and ours by name; states of padding are left out."""
        found = {f"hidden {i}": pair for i, pair in enumerate(zip(theirs.hidden_states, ours.all_hidden, strict=True))}
        logits = theirs.get("prediction_logits", theirs.get("logits"))
        if logits is not None and logits.dim() == 3:
            found["logits"] = (logits, ours.logits)
        elif logits is not None:
            found["scores"] = (logits, ours.nsp if ours.classes is None else ours.classes)
        for name, mine in (("seq_relationship_logits", ours.nsp), ("pooler_output", ours.pooled)):
            if theirs.get(name) is not None:
                found[name] = (theirs[name], mine)
        return {name: tuple(one[self.keep] if one.dim() == 3 else one for one in pair) for name, pair in found.items()}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            kind, values = CASES[name]
            built = getattr(transformers, kind)
            torch.manual_seed(len(name))
            model = built(built.config_class(**values)).eval()
            for parameter in model.parameters():
                if parameter.requires_grad:                        # RoFormer's table of sines is a frozen parameter
                    torch.nn.init.normal_(parameter, std=0.3)
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            model.save_pretrained(folder)
            made[name] = Case(model, folder)
        return made[name]

    return get


def worst(pairs: dict[str, tuple[Tensor, Tensor]]) -> float:
    for name, (theirs, ours) in pairs.items():
        assert theirs.shape == ours.shape, name
        assert theirs.detach().std() > 0.05, f"{name} is nearly constant: the comparison would be blind"
    return max((theirs - ours).abs().max().item() for theirs, ours in pairs.values())


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits(cases, name):
    case = cases(name)
    with torch.no_grad():
        pairs = case.pairs(case.ask(), case.answer(load_model(case.folder)))
    layers = CASES[name][1].get("num_hidden_layers", CASES[name][1].get("n_layer"))
    assert len([key for key in pairs if key.startswith("hidden")]) == layers + 1
    assert len(pairs) > layers + 1 or name.split()[0] in ("roformer", "gpt2") and "backbone" in name
    assert worst(pairs) <= CLOSE


@pytest.mark.parametrize("name", CASES)
def test_gradients(cases, name):
    compare_gradients(cases(name), load_model(cases(name).folder, dtype=torch.float64))


@pytest.mark.parametrize("name", ["bert pretraining", "bert backbone", "roformer mlm", "gpt2 causal"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_detached_key_is_found(cases, name, layer):
    """The planted fault: the outputs are right, a gradient is not."""
    ours = load_model(cases(name).folder, dtype=torch.float64)

    def detach(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        q, k, v = output.chunk(3, -1)
        return torch.cat((q, k.detach(), v), -1)

    ours.layers[layer].attention.project.register_forward_hook(detach)
    with pytest.raises(AssertionError, match=r"key\.weight|c_attn\.weight"):
        compare_gradients(cases(name), ours)


def compare_gradients(case: Case, ours: Transformer) -> None:
    """Of a random direction of all outputs, with respect to every parameter, each under the name that the table gives it."""
    theirs = copy.deepcopy(case.theirs).double()
    pairs = case.pairs(case.ask(theirs), case.answer(ours))
    assert worst(pairs) <= CLOSE
    noise = torch.Generator().manual_seed(7)
    directions = {key: torch.randn(pair[0].shape, generator=noise, dtype=torch.float64) for key, pair in pairs.items()}
    for side in (0, 1):
        sum((pairs[key][side] * direction).sum() for key, direction in directions.items()).backward()
    mine = {key: value.grad for key, value in ours.named_parameters()}
    mapped = export_tensors(mine, ours.config, FAMILIES[ours.config.family])
    assert mapped is not None
    prefix = FAMILIES[ours.config.family].prefix
    wrong = []
    for key, value in theirs.named_parameters():
        if value.grad is None:
            continue
        bare = key if key in mapped else prefix + key
        if (value.grad - mapped.pop(bare)).abs().max() > CLOSE_GRADIENTS:
            wrong.append(key)
        # A bias of all keys moves all scores of a query alike, which softmax ignores; rotary positions turn it, which it doesn't.
        if not key.endswith("key.bias") or ours.config.family == "roformer":
            assert value.grad.abs().max() > 10 * CLOSE_GRADIENTS, f"{key}: the gradient is nearly 0, the comparison would be blind"
    assert not wrong, f"gradients of {wrong} differ"
    assert set(mapped) <= {"cls.predictions.bias", "roformer.encoder.embed_positions.weight"}      # without effect, without gradient


@pytest.mark.parametrize("name", ["gpt2 causal", "bert pretraining", "roformer causal"])
def test_padding_on_the_left(cases, name):
    """There each side needs positions that count tokens only; ours has them by itself, RoFormer's scores ignore the shift."""
    case = copy.copy(cases(name))
    case.keep = case.keep.flip(1)
    more = {} if name.startswith("roformer") else {"position_ids": (case.keep.long().cumsum(1) - 1).clamp_min(0)}
    more |= {} if case.segments is None else {"token_type_ids": case.segments}
    with torch.no_grad():
        theirs = case.theirs(case.ids, attention_mask=case.keep.long(), output_hidden_states=True, **more)
        pairs = case.pairs(theirs, case.answer(load_model(case.folder)))
    pairs.pop("seq_relationship_logits", None)                     # theirs reads column 0, which is padding
    assert worst(pairs) <= CLOSE


# planted faults

def test_the_other_rotary_layout_is_found(cases):
    case = cases("roformer mlm")
    with torch.no_grad():
        pairs = case.pairs(case.ask(), case.answer(load_model(case.folder, position={"name": "rotary", "layout": "half"})))
    assert worst(pairs) > 1000 * CLOSE


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_exchanged_queries_and_keys_are_found(cases, name, tmp_path):
    case = cases(name)
    tensors = dict(read_folder(case.folder))
    if name.startswith("gpt2"):
        q, k, v = tensors["transformer.h.0.attn.c_attn.weight"].chunk(3, 1)
        tensors["transformer.h.0.attn.c_attn.weight"] = torch.cat((k, q, v), 1)
    else:
        stem = f"{name.split()[0]}.encoder.layer.0.attention.self."
        q, k = f"{stem}query.weight", f"{stem}key.weight"
        tensors[q], tensors[k] = tensors[k], tensors[q]
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    write_safetensors(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert worst(case.pairs(case.ask(), case.answer(load_model(tmp_path)))) > 100 * CLOSE


# every way to load

def write(kind: str, case: Case, folder: Path) -> None:
    if kind == "sharded safetensors":
        case.theirs.save_pretrained(folder, max_shard_size="9KB")
        assert (folder / "model.safetensors.index.json").is_file() and not (folder / "model.safetensors").exists()
        return
    (folder / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    state = case.theirs.state_dict()
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = [f"pytorch_model-{i:05d}-of-00003.bin" for i in (1, 2, 3)]
    where = {name: names[i % 3] for i, name in enumerate(state)}
    for file in names:
        torch.save({name: value for name, value in state.items() if where[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("kind", ["sharded safetensors", "bin", "sharded bin"])
@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "bert untied", "gpt2 untied"])
def test_every_format_gives_the_same_model(cases, name, kind, tmp_path):
    case = cases(name)
    write(kind, case, tmp_path)
    model, report = inspect(tmp_path)
    one = load_model(case.folder)
    assert model.config == one.config and not report.new and not report.unused
    assert all(torch.equal(value, one.state_dict()[key]) for key, value in model.state_dict().items())
    pointers = [value.data_ptr() for value in model.parameters()]
    assert len(set(pointers)) == len(pointers)                     # a .bin holds tied tensors once
    with torch.no_grad():
        assert worst(case.pairs(case.ask(), case.answer(model))) <= CLOSE


def test_a_tensorflow_bundle():
    """transformers' model is filled by hand from the values that TensorFlow wrote, not through our table."""
    stored = np.load(BUNDLES / "bert.npz")
    tensors = {name.replace("|", "/"): torch.from_numpy(stored[name]) for name in stored.files}
    values = json.loads((BUNDLES / "bert" / "bert_config.json").read_text(encoding="utf-8"))
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**values)).eval()
    case = Case(theirs, BUNDLES / "bert")
    here = {"kernel": ".weight", "bias": ".bias", "gamma": ".weight", "beta": ".bias", "output_weights": ".weight", "output_bias": ".bias"}
    state = {}
    for name, value in tensors.items():
        *path, last = name.replace("layer_", "layer/").split("/")
        if name == "global_step" or "adam" in last:
            continue
        state[".".join(path) + here.get(last, f".{last}.weight")] = value.T if last == "kernel" else value
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith(("position_ids", "token_type_ids")) for name in missing)
    for name in (BUNDLES / "bert", BUNDLES / "bert" / "bert_model.ckpt", BUNDLES / "bert" / "bert_model.ckpt.index"):
        model, report = inspect(name)
        assert report.family == "bert" and "with a table of positions" in report.reason and not report.new and not report.unused
        with torch.no_grad():
            assert worst(case.pairs(case.ask(), case.answer(model))) <= CLOSE


# and back

@pytest.mark.parametrize("name", CASES)
def test_transformers_opens_what_we_save(cases, name, tmp_path):
    case = cases(name)
    save(load_model(case.folder), tmp_path / "out")
    kind = type(case.theirs)
    back, said = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    named = transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures
    assert named == [kind.__name__.replace("GPT2Model", "GPT2LMHeadModel")]          # a tied head costs nothing: GPT-2 always has it
    with torch.no_grad():
        first, second = case.ask(), case.ask(back)
    for one, other in zip(first.hidden_states, second.hidden_states, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(first[0], second[0])
    before, after = case.theirs.config.to_dict(), back.config.to_dict()
    for key in FAMILIES[case.theirs.config.model_type].config:
        assert after.get(key) == before.get(key) or key in ("pad_token_id", "embedding_size", "n_inner"), key


def test_transformers_computes_the_sines_that_we_left_out(cases, tmp_path):
    """A table of more than 8192 rows is not written."""
    case = cases("roformer mlm")
    model, _ = inspect(case.folder, changes={"max_positions": 8209})
    save(model, tmp_path / "out")
    assert not any("embed_positions" in name for name in read_folder(tmp_path / "out"))
    back, said = type(case.theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert set(said["missing_keys"]) <= {"roformer.encoder.embed_positions.weight"} and not said["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(case.ask(back)[0], case.ask()[0])


@pytest.mark.parametrize(("name", "auto"), [
    ("bert mlm", "AutoModelForMaskedLM"), ("roformer classification", "AutoModelForSequenceClassification"),
    ("gpt2 causal", "AutoModelForCausalLM"), ("bert backbone", "AutoModel"),
])  # fmt: skip
def test_the_auto_classes_open_it(cases, name, auto, tmp_path):
    case = cases(name)
    save(load_model(case.folder), tmp_path / "out")
    back = getattr(transformers, auto).from_pretrained(tmp_path / "out")
    assert type(back) is type(case.theirs)
    with torch.no_grad():
        assert torch.equal(case.ask(back)[0], case.ask()[0])


def test_a_tensorflow_checkpoint_becomes_a_transformers_folder(tmp_path):
    model = load_model(BUNDLES / "bert")
    save(model, tmp_path / "out")
    back, said = transformers.BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    case = Case(back.eval(), tmp_path)
    with torch.no_grad():
        assert worst(case.pairs(case.ask(), case.answer(model))) <= CLOSE


@pytest.mark.parametrize("changes", [
    {"residual_scores": True}, {"position": "sinusoidal"}, {"norm": {"name": "rms"}}, {"heads": ({"name": "pooler", "at": "last"},)},
    {"heads": ({"name": "pooler", "activation": "linear"}, "nsp")}, {"mask": {"name": "full", "window": 3}},
])  # fmt: skip
def test_transformers_refuses_what_it_would_compute_otherwise(cases, changes, tmp_path):
    model, _ = inspect(cases("bert pretraining").folder, changes=changes)
    save(model, tmp_path / "out")
    with pytest.raises(ValueError, match="fishpaw"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
