"""T5, T5 1.1 and mT5 against transformers: hidden states, logits, gradients, cached and greedy decoding; the way back; TensorFlow.

Weights are random with a standard deviation of 0.6; sizes are primes, keys are no share of the width, encoder and decoder are of unequal
depth, and texts are longer than the farthest bucket. Differences are in parts of the largest value; fp32, what is measured is about 1e-6.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import tokenizers
import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.search import greedy
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import CheckpointError, ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.generate import Generate
from fishpaw.weights.bundle import write_bundle
from fishpaw.weights.load import inspect, load, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.tensorflow import open_bundle
from fishpaw.weights.to_tensorflow import save_tensorflow
from fishpaw.weights.translate import export_tensors, read_config

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

pytestmark = pytest.mark.parity

CLOSE = 1e-5
CLOSE_GRADIENTS = 1e-9                                             # fp64
SIZES = {"vocab_size": 31, "d_model": 21, "d_kv": 5, "d_ff": 17, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 7, "decoder_start_token_id": 0}  # fmt: skip
DEEP = {"num_layers": 1, "num_decoder_layers": 4, "num_heads": 7, "d_kv": 2, "layer_norm_epsilon": 1e-3}
FLAT = {"num_layers": 2, "num_decoder_layers": None, "d_kv": 11, "relative_attention_num_buckets": 14, "relative_attention_max_distance": 9,
        "d_ff": 61}  # fmt: skip
GELU = {"feed_forward_proj": "gated-gelu"}
UNTIED = {**GELU, "tie_word_embeddings": False}
CASES = {
    "t5": ("T5ForConditionalGeneration", SIZES),
    "t5 deep decoder": ("T5ForConditionalGeneration", SIZES | DEEP | {"feed_forward_proj": "gelu_new"}),
    "t5 backbone": ("T5Model", SIZES | FLAT),
    "t5 encoder": ("T5EncoderModel", SIZES),
    "t5.1.1": ("T5ForConditionalGeneration", SIZES | UNTIED),
    "t5.1.1 deep decoder": ("T5ForConditionalGeneration", SIZES | DEEP | UNTIED | {"feed_forward_proj": "gated-silu"}),
    "t5.1.1 tied": ("T5ForConditionalGeneration", SIZES | FLAT | GELU),
    "t5.1.1 encoder": ("T5EncoderModel", SIZES | FLAT | GELU),
    "mt5": ("MT5ForConditionalGeneration", SIZES | UNTIED),
    "mt5 deep decoder": ("MT5ForConditionalGeneration", SIZES | DEEP | UNTIED | {"feed_forward_proj": "gated-relu"}),
    "mt5 backbone": ("MT5Model", SIZES | FLAT),
    "mt5 encoder": ("MT5EncoderModel", SIZES | FLAT),
}
ONE_A_FAMILY = ["t5", "t5.1.1", "mt5"]
BOTH_SIDES = [
    *((name, "right") for name, (kind, _) in CASES.items() if kind.endswith("Generation")),
    *((name, "left") for name in ONE_A_FAMILY),
]


@dataclass
class Case:
    """Texts of 13, 9 and 4 tokens for the encoder, of 7, 5 and 2 for the decoder, padded on `side`."""

    theirs: Any
    folder: Path
    side: str = "right"

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(5)
        self.source, self.target = (torch.randint(0, 31, (3, t), generator=noise) for t in (13, 7))
        self.seen = torch.arange(13) < torch.tensor([[13], [9], [4]])
        self.keep = torch.arange(7) < torch.tensor([[7], [5], [2]])
        if self.side == "left":
            self.seen, self.keep = self.seen.flip(1), self.keep.flip(1)

    @property
    def alone(self) -> bool:
        return "Encoder" in type(self.theirs).__name__

    @property
    def read(self) -> Batch:
        return Batch.padded(self.source, keep=self.seen)

    def ask(self, theirs: Any = None) -> Any:
        more = {} if self.alone else {"decoder_input_ids": self.target, "decoder_attention_mask": self.keep.long()}
        return (theirs or self.theirs)(self.source, attention_mask=self.seen.long(), output_hidden_states=True, **more)

    def answer(self, ours: Transformer) -> Any:
        if self.alone:
            return ours(self.source, padding=self.seen, all_hidden=True)
        return ours(self.target, padding=self.keep, encoder_batch=self.read, all_hidden=True)

    def pairs(self, theirs: Any, ours: Transformer) -> dict[str, tuple[Tensor, Tensor]]:
        """Theirs and ours by name; states of padding are left out."""
        made, keep = self.answer(ours), self.seen if self.alone else self.keep
        states = theirs.hidden_states if self.alone else theirs.decoder_hidden_states
        found = {f"hidden {i}": (one[keep], other[keep]) for i, (one, other) in enumerate(zip(states, made.all_hidden, strict=True))}
        if "logits" in theirs:
            found["logits"] = (theirs.logits[keep], made.logits[keep])
        if ours.encoder is not None:
            encoded = ours.encoder(self.read, embedded=ours.table[self.source.flatten()], logits_at=torch.empty(0, dtype=torch.long))
            found["encoded"] = (theirs.encoder_last_hidden_state[self.seen], encoded.hidden[self.seen])
        return found

    def spoiled(self, folder: Path, changes: dict[str, Any]) -> Path:
        """The same tensors beside another config.json; None takes a field away."""
        values = json.loads((self.folder / "config.json").read_text(encoding="utf-8")) | changes
        values = {field: value for field, value in values.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
        (folder / "model.safetensors").write_bytes((self.folder / "model.safetensors").read_bytes())
        return folder

    def far(self, ours: Transformer) -> float:
        with torch.no_grad():
            return worst(self.pairs(self.ask(), ours))


def worst(pairs: dict[str, tuple[Tensor, Tensor]]) -> float:
    for name, (theirs, ours) in pairs.items():
        assert theirs.shape == ours.shape, name
        assert theirs.detach().std() > 0.05, f"{name} is nearly constant: the comparison would be blind"
        assert bool(ours.isfinite().all()), name                   # max() would pass over a NaN
    return max(((theirs - ours).abs().max() / theirs.abs().max()).item() for theirs, ours in pairs.values())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            kind, values = CASES[name]
            built = getattr(transformers, kind)
            torch.manual_seed(len(name))
            model = built(built.config_class(**values)).eval()
            if not values.get("tie_word_embeddings", True):            # transformers 5 ties the two that published models have
                model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.6)
            folder = tmp_path_factory.mktemp(re.sub(r"\W", "_", name))
            model.save_pretrained(folder)
            made[name] = Case(model, folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits(cases, name):
    case = cases(name)
    model, report = inspect(case.folder)
    assert report.family == name.split()[0] + ("_encoder" if case.alone else "") and not report.new and not report.unused
    assert model.config.tie_embeddings == CASES[name][1].get("tie_word_embeddings", True)
    assert (model.encoder is None) == case.alone
    assert case.far(model) <= CLOSE


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "t5 encoder"])
def test_padding_on_the_left(cases, name):
    case = cases(name)
    assert Case(case.theirs, case.folder, "left").far(load_model(case.folder)) <= CLOSE


@pytest.mark.parametrize("name", [*ONE_A_FAMILY, "mt5 encoder"])
def test_gradients(cases, name):
    case = cases(name)
    compare_gradients(case, load_model(case.folder, dtype=torch.float64))


def test_a_detached_key_is_found(cases):
    """The planted fault: the outputs are right, a gradient is not."""
    ours = load_model(cases("t5").folder, dtype=torch.float64)

    def detach(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        k, v = output.chunk(2, -1)
        return torch.cat((k.detach(), v), -1)

    ours.layers[1].cross.key_value.register_forward_hook(detach)
    with pytest.raises(AssertionError, match=r"EncDecAttention\.k"):
        compare_gradients(cases("t5"), ours)


def doubled(theirs: Any) -> Any:
    """Their model in fp64, the norms, too, which take their mean in fp32."""

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x / (x.square().mean(-1, keepdim=True) + self.variance_epsilon).sqrt())

    found = copy.deepcopy(theirs).double()
    for module in found.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(norm, module)
    return found


def compare_gradients(case: Case, ours: Transformer) -> None:
    """Of a random direction of all outputs, with respect to every parameter, each under the name that the table gives it."""
    theirs = doubled(case.theirs)
    pairs = case.pairs(case.ask(theirs), ours)
    assert worst(pairs) <= CLOSE
    noise = torch.Generator().manual_seed(7)
    directions = {key: torch.randn(pair[0].shape, generator=noise, dtype=torch.float64) for key, pair in pairs.items()}
    for side in (0, 1):
        sum((pairs[key][side] * direction).sum() for key, direction in directions.items()).backward()
    mapped = export_tensors({key: value.grad for key, value in ours.named_parameters()}, ours.config, FAMILIES[ours.config.family])
    assert mapped is not None
    wrong = []
    for key, value in theirs.named_parameters():
        scale = value.grad.abs().max().item()
        assert scale > 1e-3, f"{key}: the gradient is nearly 0, the comparison would be blind"
        wrong += [key] if (value.grad - mapped.pop(key)).abs().max() > CLOSE_GRADIENTS * max(1.0, scale) else []
    assert not wrong, f"gradients of {wrong} differ"
    assert not mapped


# planted faults

@pytest.mark.parametrize("changes", [
    {"attention": "softmax"},                                      # scores over sqrt(d)
    {"position": {"name": "buckets", "buckets": 8, "distance": 7, "bidirectional": True}},
    {"position": {"name": "buckets", "buckets": 8, "distance": 13}},
    {"heads": ("lm",)},                                            # logits unscaled
    {"mask": "full"},
])  # fmt: skip
def test_faults_are_found(cases, changes):
    model, _ = inspect(cases("t5").folder, changes=changes)
    assert cases("t5").far(model) > 1000 * CLOSE


def test_a_scale_too_many_is_found(cases):
    model, _ = inspect(cases("mt5").folder, changes={"heads": ({"name": "lm", "scale": 21**-0.5},)})
    assert cases("mt5").far(model) > 1000 * CLOSE


# what config.json says

def test_the_defaults_are_theirs():
    for family, kind in (("t5", transformers.T5Config), ("mt5", transformers.MT5Config)):
        assert read_config({}, FAMILIES[family]) == read_config(kind().to_dict(), FAMILIES[family])
    gated = transformers.T5Config(feed_forward_proj="gated-gelu").to_dict()
    assert read_config({}, FAMILIES["t5.1.1"]) == read_config(gated, FAMILIES["t5.1.1"])


def test_a_published_config_says_untied(cases, tmp_path):
    """google/t5-v1_1-small has tie_word_embeddings false, which transformers 5 writes as true beside scale_decoder_outputs false."""
    changes = {"tie_word_embeddings": False, "scale_decoder_outputs": None, "dense_act_fn": None, "is_gated_act": None}
    case = cases("t5.1.1")
    assert case.far(load_model(case.spoiled(tmp_path, changes))) <= CLOSE


def test_a_bin_that_holds_the_tied_table_four_times(cases, tmp_path):
    case = cases("t5")
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    state = case.theirs.state_dict()
    assert {"shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} <= set(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model, report = inspect(tmp_path)
    assert model.config.tie_embeddings and not report.new and case.far(model) <= CLOSE


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_the_encoder_of_a_whole_model(cases, name):
    case = cases(name)
    model = load_model(case.folder, family=f"{name}_encoder")
    with torch.no_grad():
        made = model(case.source, padding=case.seen).hidden[case.seen]
        assert worst({"encoded": (case.ask().encoder_last_hidden_state[case.seen], made)}) <= CLOSE


def test_another_kind_is_refused(cases, tmp_path):
    with pytest.raises(ConfigError, match="feed_forward_proj is 'relu'"):
        inspect(cases("t5").folder, family="mt5")
    with pytest.raises(CheckpointError, match=r"DenseReluDense\.wi"):
        inspect(cases("t5").spoiled(tmp_path, {"feed_forward_proj": "gated-gelu", "is_gated_act": True}))


# and back

@pytest.mark.parametrize("name", CASES)
def test_transformers_opens_what_we_save(cases, name, tmp_path):
    case = cases(name)
    save(load_model(case.folder), tmp_path / "out")
    kind = type(case.theirs)
    back, said = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
    named = transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures
    assert named == [kind.__name__.replace("T5Model", "T5ForConditionalGeneration")]         # a tied head costs nothing: it is always there
    with torch.no_grad():
        first, second = case.ask(), case.ask(back.eval())
    for key in ("last_hidden_state", "logits", "encoder_last_hidden_state"):
        assert key not in first or torch.equal(first[key], second[key]), key
    before, after = case.theirs.config.to_dict(), back.config.to_dict()
    fields = {*FAMILIES["t5"].config, "feed_forward_proj", "scale_decoder_outputs", "decoder_start_token_id", "is_encoder_decoder"}
    for key in fields - ({"num_decoder_layers"} if case.alone else set()):
        assert after.get(key) == before.get(key), key
    again, report = inspect(tmp_path / "out")
    assert again.config == load_model(case.folder).config and not report.new


@pytest.mark.parametrize("changes", [
    {"attention": "softmax"}, {"biases": ("qkv",)}, {"position": "learned"}, {"residual_scores": True},
    {"mask": {"name": "causal", "window": 3}},
])  # fmt: skip
def test_transformers_refuses_what_it_would_compute_otherwise(cases, changes, tmp_path):
    before = load_model(cases("t5").folder)
    model = Transformer(ModelConfig.from_dict(before.config.to_dict()).change(changes))
    save(model, tmp_path / "out")
    with pytest.raises(ValueError, match="fishpaw"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert load_model(tmp_path / "out").config == model.config


# decoding

@pytest.mark.parametrize(("name", "side"), BOTH_SIDES)
def test_cached_steps_are_the_whole(cases, name, side):
    case = Case(cases(name).theirs, cases(name).folder, side)
    model = load_model(case.folder, dtype=torch.float64)
    stepper = TransformerStepper(model)
    made = [stepper.start(Batch.padded(case.target, keep=case.keep), case.read)]
    more = torch.randint(0, 31, (3, 4), generator=torch.Generator().manual_seed(3))
    made += [stepper.step(token) for token in more.T]
    for row, (target, keep) in enumerate(zip(case.target, case.keep, strict=True)):                 # each alone, without padding
        whole = torch.cat((target[keep], more[row]))[None]
        with torch.no_grad():
            logits = model(whole, encoder_batch=Batch.padded(case.source[row][case.seen[row]][None])).logits[0, -5:]
        torch.testing.assert_close(torch.stack([one[row] for one in made]), logits, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize(("name", "side"), BOTH_SIDES)
def test_greedy_tokens_are_those_of_generate(cases, name, side):
    case = Case(cases(name).theirs, cases(name).folder, side)
    theirs = doubled(case.theirs)
    texts = {"input_ids": case.source, "attention_mask": case.seen.long()}
    found = theirs.generate(**texts, max_new_tokens=12, do_sample=False, num_beams=1, use_cache=False)    # theirs is as deep as the encoder
    stepper = TransformerStepper(load_model(case.folder, dtype=torch.float64))
    start = Batch.padded(torch.full((3, 1), stepper.model.config.pad_id))
    for one, tokens in zip(greedy(stepper, start, case.read, limits=Limits(max_new=12, ends=(1,))), found[:, 1:].tolist(), strict=True):
        assert list(one.tokens) == tokens[: len(one.tokens)] and not any(tokens[len(one.tokens) :])


def test_a_folder_with_a_tokenizer_answers_texts(cases, tmp_path):
    """From text to text, by the same folder in both libraries."""
    letters = "▁今天气很好我们去公园吧abcdefghijklmnop"             # 28, and three more
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -3.0 - i / 7) for i, letter in enumerate(letters))]
    rust = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    rust.pre_tokenizer, rust.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    rust.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    rust.add_special_tokens(["<pad>", "</s>", "<unk>"])
    case = cases("t5")
    case.spoiled(tmp_path, {})
    rust.save(str(tmp_path / "tokenizer.json"))
    task = Generate(*load(tmp_path, dtype=torch.float64))
    texts = ["今天天气很好", "我们去公园吧 abc"]
    found = [task.decode(one) for one in greedy(task.stepper, task.encode(texts), limits=task.limits(9))]
    assert any(found)
    for text, mine in zip(texts, found, strict=True):
        ids = torch.tensor([rust.encode(text).ids])
        (made,) = doubled(case.theirs).generate(ids, max_new_tokens=9, do_sample=False, num_beams=1, use_cache=False).tolist()
        assert mine == rust.decode(made)


# TensorFlow

def mesh_variables(state: dict[str, Tensor], rms: bool) -> dict[str, Tensor]:
    """As Mesh TensorFlow wrote them, with what Adafactor left; not through our table."""
    found = {"shared/embedding": state["shared.weight"], "global_step": torch.tensor(1_000_000)}
    if "lm_head.weight" in state:
        found["decoder/logits/kernel"] = state["lm_head.weight"].T
    for name, value in state.items():
        if name.startswith(("shared", "lm_head")) or "embed_tokens" in name:
            continue
        if name.endswith("final_layer_norm.weight"):
            found[f"{name.split('.')[0]}/{'rms_norm' if rms else 'final_layer_norm'}/scale"] = value
            continue
        side, _, block, _, layer, *rest, _ = name.split(".")
        path = f"{side}/block_{int(block):03}/layer_{int(layer):03}/" + "/".join(rest)
        if rest == ["layer_norm"]:
            found[path.replace("layer_norm", "rms_norm" if rms else "layer_norm") + "/scale"] = value
        else:
            found[path + ("/kernel" if rest[0] == "DenseReluDense" else "")] = value.T
            found[f"{path}_slot_vr"] = torch.ones(3)
    return found | {"decoder/block_000/layer_001/EncDecAttention/relative_attention_bias": torch.ones(3, 8)}


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_a_tensorflow_checkpoint(cases, name, tmp_path):
    case = cases(name)
    tied = CASES[name][1].get("tie_word_embeddings", True)
    state = {key: value for key, value in case.theirs.state_dict().items() if not tied or key != "lm_head.weight"}
    variables = mesh_variables(state, rms=name == "mt5")
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    write_bundle(tmp_path / "model.ckpt-1000000", {key: value.contiguous() for key, value in variables.items()})
    model, report = inspect(tmp_path)
    assert report.family == name and not report.new and not report.unused
    assert case.far(model) <= CLOSE
    save_tensorflow(model, tmp_path / "back")
    back = open_bundle(tmp_path / "back" / "bert_model.ckpt")
    kept = {key for key in variables if "_slot_" not in key and key != "global_step" and "EncDecAttention/relative" not in key}
    assert set(back) == kept
    assert all(torch.equal(back[key], variables[key]) for key in back)


@pytest.mark.parametrize(("layout", "kind", "activation"), [("t5", "T5", "relu"), ("t5.1.1", "T5", "gelu"), ("mt5", "MT5", "gelu")])
def test_a_config_of_bert4keras(layout, kind, activation, tmp_path):
    """Beside a TensorFlow checkpoint (T5-PEGASUS): fields named as BERT's, no model_type, and its gelu is the exact one."""
    said = {"feed_forward_proj": "relu"} if layout == "t5" else {**UNTIED, "dense_act_fn": "gelu"}
    built = getattr(transformers, f"{kind}Config")(**SIZES | {"num_decoder_layers": 3, "relative_attention_max_distance": 128} | said)
    theirs = getattr(transformers, f"{kind}ForConditionalGeneration")(built).eval()
    if layout != "t5":
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.lm_head.weight))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    values = {"hidden_act": activation, "hidden_dropout_prob": 0.1, "hidden_size": 21, "initializer_range": 0.02, "intermediate_size": 17,
              "num_attention_heads": 3, "attention_head_size": 5, "num_hidden_layers": 3, "vocab_size": 31,
              "relative_attention_num_buckets": 8, "attention_scale": False, "is_dropout": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    state = {key: value for key, value in theirs.state_dict().items() if layout != "t5" or key != "lm_head.weight"}
    variables = mesh_variables(state, rms=layout == "mt5")
    write_bundle(tmp_path / "model.ckpt", {key: value.contiguous() for key, value in variables.items()})
    model, report = inspect(tmp_path)
    assert report.family == layout and not report.new
    assert Case(theirs, tmp_path).far(model) <= CLOSE
    save(model, tmp_path / "out")
    back = type(theirs).from_pretrained(tmp_path / "out")
    assert Case(back, tmp_path).far(model) <= CLOSE
