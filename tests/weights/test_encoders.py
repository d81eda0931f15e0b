"""The encoders against transformers: hidden states, logits, scores, gradients, padding on either side; and the way back.

Weights are random with a standard deviation of 0.6: near 0 attention is uniform and hides faults. ModernBERT has 0.4: it norms before, what
is added grows to hundreds, and the two sides' errors, equal against fp64, with it. A norm's weights are around 1. Sizes are odd where the
architecture allows. fp32: 1e-5 of the largest value, but at least of 1.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.bundle import write_bundle
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import inspect, load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.tensorflow import open_bundle
from fishpaw.weights.to_tensorflow import save_tensorflow
from fishpaw.weights.translate import export_tensors

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

pytestmark = pytest.mark.parity

CLOSE = 1e-5
LENGTH = 11
SIZES = {"vocab_size": 31, "hidden_size": 21, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 17,
         "max_position_embeddings": 19}  # fmt: skip
ONE_LAYER = {"num_hidden_layers": 1, "type_vocab_size": 1, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}
ALBERT = {**SIZES, "embedding_size": 13}
ROBERTA = {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2}
MODERNBERT = {**SIZES, "hidden_size": 18, "num_hidden_layers": 5, "pad_token_id": 3, "local_attention": 6, "bos_token_id": 1,
              "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
TABLES = {f"{kind}_attention": {"rope_type": "default", "rope_theta": theta} for kind, theta in (("full", 700.0), ("sliding", 50.0))}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert pretraining": ("AlbertForPreTraining", ALBERT),
    "albert mlm in groups": ("AlbertForMaskedLM", ALBERT | {"num_hidden_layers": 6, "num_hidden_groups": 3, "hidden_act": "gelu"}),
    "albert unshared": ("AlbertForMaskedLM", ALBERT | {"num_hidden_groups": 3, "tie_word_embeddings": False, "type_vocab_size": 3}),
    "albert inner layers": ("AlbertModel", ALBERT | {"num_hidden_layers": 2, "num_hidden_groups": 2, "inner_group_num": 3}),
    "albert classification": ("AlbertForSequenceClassification", ALBERT | {"embedding_size": 37, "num_labels": 5, "hidden_act": "relu"}),
    "electra discriminator": ("ElectraForPreTraining", SIZES | {"embedding_size": 13, "hidden_act": "relu"}),
    "electra discriminator as wide": ("ElectraForPreTraining", SIZES | ONE_LAYER | {"embedding_size": 21}),
    "electra generator": ("ElectraForMaskedLM", SIZES | {"embedding_size": 37, "type_vocab_size": 3}),
    "electra generator untied": ("ElectraForMaskedLM", SIZES | {"embedding_size": 13, "tie_word_embeddings": False}),
    "electra generator with relu": ("ElectraForMaskedLM", SIZES | {"embedding_size": 13, "hidden_act": "relu"}),
    "electra classification": ("ElectraForSequenceClassification", SIZES | {"embedding_size": 13, "num_labels": 5, "hidden_act": "tanh"}),
    "electra causal": ("ElectraForCausalLM", SIZES | {"embedding_size": 13, "is_decoder": True}),
    "ernie mlm": ("ErnieForMaskedLM", SIZES | {"hidden_act": "relu", "type_vocab_size": 4}),
    "ernie pretraining": ("ErnieForPreTraining", SIZES | ONE_LAYER),
    "ernie classification": ("ErnieForSequenceClassification", SIZES | {"num_labels": 3, "num_attention_heads": 7}),
    "ernie backbone": ("ErnieModel", SIZES | {"layer_norm_eps": 1e-3}),
    "roberta mlm": ("RobertaForMaskedLM", ROBERTA),
    "roberta mlm with relu": ("RobertaForMaskedLM", ROBERTA | {"hidden_act": "relu", "num_hidden_layers": 1}),
    "roberta backbone": ("RobertaModel", ROBERTA | {"hidden_act": "relu", "type_vocab_size": 2}),
    "roberta causal": ("RobertaForCausalLM", ROBERTA | {"is_decoder": True}),
    "xlm-roberta classification": ("XLMRobertaForSequenceClassification", ROBERTA | {"num_labels": 5, "hidden_act": "silu"}),
    "xlm-roberta mlm untied": ("XLMRobertaForMaskedLM", ROBERTA | {"tie_word_embeddings": False, "num_hidden_layers": 1}),
    "xlm-roberta other padding": ("XLMRobertaModel", ROBERTA | {"pad_token_id": 4, "num_attention_heads": 7}),
    "camembert mlm": ("CamembertForMaskedLM", ROBERTA | {"layer_norm_eps": 1e-3}),
    "modernbert mlm": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert with biases": ("ModernBertForMaskedLM", MODERNBERT | {
        "attention_bias": True, "mlp_bias": True, "classifier_bias": True, "norm_bias": True, "hidden_activation": "silu",
        "classifier_activation": "silu", "tie_word_embeddings": False}),
    "modernbert with another head": ("ModernBertForMaskedLM", MODERNBERT | {"hidden_activation": "silu", "classifier_activation": "relu"}),
    "modernbert backbone": ("ModernBertModel", MODERNBERT | {
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention", "full_attention"],
        "local_attention": 5, "rope_parameters": TABLES, "norm_eps": 1e-3}),
}  # fmt: skip
ONE_A_FAMILY = ["albert mlm in groups", "electra discriminator", "ernie mlm", "roberta mlm", "xlm-roberta classification", "modernbert mlm"]


@dataclass
class Case:
    theirs: Any
    folder: Path
    ids: Tensor = field(init=False)
    segments: Tensor = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(5)
        config = self.theirs.config
        draw = torch.randint(0, config.vocab_size - 1, (3, LENGTH), generator=noise)
        self.ids = draw + (draw >= config.pad_token_id)                                 # RoBERTa counts what isn't the padding's id
        self.segments = torch.randint(0, getattr(config, "type_vocab_size", 1), (3, LENGTH), generator=noise)

    def keep(self, left: bool) -> Tensor:
        kept = torch.arange(LENGTH) < torch.tensor([[7], [LENGTH], [4]])
        return kept.flip(1) if left else kept

    def pairs(self, ours: Transformer, *, theirs: Any = None, left: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
        """Theirs and ours by name; states of padding are left out, and where theirs reads it, what is read from the first column."""
        theirs, keep = theirs or self.theirs, self.keep(left)
        ids = self.ids.where(keep, self.theirs.config.pad_token_id)
        kind = self.theirs.config.model_type
        more: dict[str, Tensor] = {} if kind == "modernbert" else {"token_type_ids": self.segments}
        if left and kind in ("albert", "electra", "ernie"):
            more["position_ids"] = (keep.long().cumsum(1) - 1).clamp_min(0)
        one = theirs(ids, attention_mask=keep.long(), output_hidden_states=True, **more)
        two = ours(ids, padding=keep, segments=None if kind == "modernbert" else self.segments, all_hidden=True)
        found = {f"hidden {i}": pair for i, pair in enumerate(zip(one.hidden_states, two.all_hidden, strict=True))}
        logits = one.get("prediction_logits", one.get("logits"))
        if logits is not None:
            found["logits"] = (logits, next(made for made in (two.replaced, two.logits, two.classes) if made is not None))
        for name, mine in (("seq_relationship_logits", two.nsp), ("sop_logits", two.nsp), ("pooler_output", two.pooled)):
            if one.get(name) is not None:
                found[name] = (one[name], mine)
        a_token = {name: pair for name, pair in found.items() if pair[0].shape[:2] == (3, LENGTH)}
        of_sequences = {} if left else {name: pair for name, pair in found.items() if name not in a_token}
        return {name: (first[keep], second[keep]) for name, (first, second) in a_token.items()} | of_sequences


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            kind, values = CASES[name]
            built = getattr(transformers, kind)
            torch.manual_seed(len(name))
            model = built(built.config_class(**values)).eval()
            for key, parameter in model.named_parameters():
                scale = float("norm" in key.lower() and key.endswith("weight"))
                torch.nn.init.normal_(parameter, mean=scale, std=0.4 if name.startswith("modernbert") else 0.6)
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            model.save_pretrained(folder)
            made[name] = Case(model, folder)
        return made[name]

    return get


def worst(pairs: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The largest difference, of the largest value where that is above 1."""
    found = []
    for name, (theirs, ours) in pairs.items():
        assert theirs.shape == ours.shape, name
        assert theirs.detach().std() > 0.05, f"{name} is nearly constant: the comparison would be blind"
        found.append((theirs - ours).abs().max().item() / max(1.0, theirs.abs().max().item()))
    return max(found)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits(cases, name, left):
    case = cases(name)
    ours, report = inspect(case.folder)
    assert not report.new and not report.unused
    with torch.no_grad():
        pairs = case.pairs(ours, left=left)
    layers = ours.config.layers
    assert len([key for key in pairs if key.startswith("hidden")]) == layers + 1
    assert len(pairs) > layers + 1 or left or "modernbert backbone" in name
    assert worst(pairs) <= CLOSE


@pytest.mark.parametrize("name", ONE_A_FAMILY)
def test_gradients(cases, name):
    """Of a random direction of all outputs, with respect to every parameter, each under the name that the table gives it; fp64."""
    case = cases(name)
    ours, theirs = load_model(case.folder, dtype=torch.float64), copy.deepcopy(case.theirs).double()
    compare_gradients(case, ours, theirs)

    def detach(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        q, k, v = output.chunk(3, -1)
        return torch.cat((q, k.detach(), v), -1)

    theirs.zero_grad()
    ours.zero_grad()
    ours.layers[0].attention.project.register_forward_hook(detach)                       # the planted fault: outputs are right
    with pytest.raises(AssertionError, match=r"key\.weight|Wqkv\.weight"):
        compare_gradients(case, ours, theirs)


def compare_gradients(case: Case, ours: Transformer, theirs: Any) -> None:
    pairs = case.pairs(ours, theirs=theirs)
    noise = torch.Generator().manual_seed(7)
    directions = {key: torch.randn(pair[0].shape, generator=noise, dtype=torch.float64) for key, pair in pairs.items()}
    for side in (0, 1):
        sum((pairs[key][side] * direction).sum() for key, direction in directions.items()).backward()
    family = FAMILIES[ours.config.family]
    mapped = export_tensors({key: value.grad for key, value in ours.named_parameters()}, ours.config, family)
    assert mapped is not None
    wrong = []
    for key, value in theirs.named_parameters():
        if value.grad is None:
            continue
        mine = mapped.pop(key)
        size = max(1.0, value.grad.abs().max().item())
        if (value.grad - mine).abs().max() > (1e-4 if family.name == "modernbert" else 1e-9) * size:      # it turns in fp32, always
            wrong.append(key)
        if not key.endswith("key.bias"):                                                 # which moves all scores of a query alike
            assert value.grad.abs().max() > 1e-5, f"{key}: the gradient is nearly 0, the comparison would be blind"
    assert not wrong, f"gradients of {wrong} differ"
    assert not mapped, f"{set(mapped)} have no gradient there"


FAULTS: dict[str, dict[str, Any]] = {
    "albert mlm in groups": {"activation": "gelu_tanh"},
    "albert inner layers": {"distinct_layers": 6, "norm": {"name": "layer", "eps": 1e-2}},
    "electra generator with relu": {"heads": ({"name": "mlm"},)},
    "ernie mlm": {"activation": "gelu"},
    "roberta mlm": {"position": {"name": "learned", "offset": 0}},
    "modernbert mlm": {"mask": "full"},
    "modernbert backbone": {"position": {"name": "rotary", "layout": "half", "theta": 700.0}},
    "modernbert with biases": {"mask": [{"name": "full"}, {"name": "full", "window": 2}, {"name": "full", "window": 3}]},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(cases, name):
    ours, _ = inspect(cases(name).folder, changes=FAULTS[name])
    with torch.no_grad():
        assert worst(cases(name).pairs(ours)) > 100 * CLOSE


@pytest.mark.parametrize("name", CASES)
def test_transformers_opens_what_we_save(cases, name, tmp_path):
    case = cases(name)
    ours = load_model(case.folder)
    save(ours, tmp_path)
    kind = type(case.theirs)
    back, said = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert transformers.AutoConfig.from_pretrained(tmp_path).architectures == [kind.__name__]
    again = load_model(tmp_path)
    assert again.config == ours.config
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(case.pairs(ours, theirs=back).values(), case.pairs(again).values(), strict=True)
                   for pair in zip(*pair, strict=True))  # fmt: skip


# what the tables say beside the names


def rewritten(case: Case, folder: Path, values: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Path:
    """The same folder with other fields and tensors more."""
    held = json.loads((case.folder / "config.json").read_text(encoding="utf-8")) | values
    (folder / "config.json").write_text(json.dumps(held), encoding="utf-8")
    write_safetensors(dict(read_folder(case.folder)) | (tensors or {}), folder / "model.safetensors")
    return folder


def test_a_pooler_beside_the_classifiers_own_is_not_read(cases, tmp_path):
    """Classifiers of before 2020 hold both."""
    case = cases("xlm-roberta classification")
    more = {f"roberta.pooler.dense.{leaf}": torch.randn(shape) for leaf, shape in (("weight", (21, 21)), ("bias", (21,)))}
    ours, report = inspect(rewritten(case, tmp_path, {}, more))
    assert not report.new and sorted(report.unused) == sorted(more)
    with torch.no_grad():
        assert worst(case.pairs(ours)) <= CLOSE


@pytest.mark.parametrize(("name", "values", "message"), [
    ("albert mlm in groups", {"num_hidden_groups": 4}, "6 layers of 4 groups"),
    ("albert mlm in groups", {"inner_group_num": 2}, "groups of 2 layers"),
    ("albert pretraining", {"embedding_size": 21}, "embedding_size equals hidden_size"),
    ("roberta mlm", {"pad_token_id": -2}, "pad_token_id"),
    ("modernbert mlm", {"layer_types": ["full_attention"]}, "layer_types"),
    ("modernbert mlm", {"layer_types": ["chunked_attention"] * 5}, "layer_types"),
    ("modernbert mlm", {"layer_types": [["full_attention"]] * 5}, "layer_types"),
    ("modernbert mlm", {"decoder_bias": False}, "decoder_bias"),
    ("modernbert mlm", {"rope_scaling": {"factor": 2}}, "rope_scaling"),
    ("modernbert mlm", {"rope_parameters": 3}, "rope_parameters"),
    ("modernbert mlm", {"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "spiral"),
    ("modernbert mlm", {"attention_bias": "no"}, "attention_bias"),
    ("electra generator", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("ernie mlm", {"add_cross_attention": True}, "add_cross_attention"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused(cases, name, values, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_model(rewritten(cases(name), tmp_path, values))


def test_a_modernbert_of_before_transformers_5_is_the_same(cases, tmp_path):
    """Its fields for the turns and the wavelengths were others."""
    case = cases("modernbert mlm")
    old = {"layer_types": None, "rope_parameters": None, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
           "local_rope_theta": 10000.0}  # fmt: skip
    one, other = load_model(case.folder), load_model(rewritten(case, tmp_path, old))
    assert one.config == other.config and len(one.config.turns("mask")) == 3
    assert load_model(rewritten(case, tmp_path, old | {"local_rope_theta": 160000.0})).config.position != one.config.position


def test_a_classifier_of_modernbert_gives_its_hidden_states(tmp_path):
    """Its pooler norms, as none of ours does: it is left out, and said to be unused."""
    config = transformers.ModernBertConfig(**MODERNBERT)
    transformers.ModernBertForSequenceClassification(config).save_pretrained(tmp_path)
    model, report = inspect(tmp_path)
    assert not model.heads and not report.new and {"classifier.weight", "head.dense.weight"} <= set(report.unused)


def test_ernie_3_reads_the_first_task(tmp_path):
    """The row of task 0 is in every token's vector, so it may lie in the segments' table."""
    config = transformers.ErnieConfig(**SIZES, use_task_id=True, type_vocab_size=4)
    torch.manual_seed(3)
    theirs = transformers.ErnieForMaskedLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    theirs.save_pretrained(tmp_path / "in")
    case = Case(theirs, tmp_path / "in")
    ours, report = inspect(case.folder)
    assert not report.new and not report.unused
    with torch.no_grad():
        assert worst(case.pairs(ours)) <= CLOSE
        save(ours, tmp_path / "out")
        back, said = transformers.ErnieForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert worst(case.pairs(ours, theirs=back)) <= CLOSE


# TensorFlow: Google's own names

ALBERT_LAYER = "bert/encoder/transformer/group_0/inner_group_0"
PUBLISHED = {
    "albert pretraining": {
        "albert.encoder.embedding_hidden_mapping_in.weight": "bert/encoder/embedding_hidden_mapping_in/kernel",
        "albert.embeddings.word_embeddings.weight": "bert/embeddings/word_embeddings",
        "albert.embeddings.LayerNorm.weight": "bert/embeddings/LayerNorm/gamma",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.value.bias": f"{ALBERT_LAYER}/attention_1/self/value/bias",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.dense.weight": f"{ALBERT_LAYER}/attention_1/output/dense/kernel",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.LayerNorm.bias": f"{ALBERT_LAYER}/LayerNorm/beta",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight": f"{ALBERT_LAYER}/ffn_1/intermediate/dense/kernel",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight": f"{ALBERT_LAYER}/ffn_1/intermediate/output/dense/kernel",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.full_layer_layer_norm.weight": f"{ALBERT_LAYER}/LayerNorm_1/gamma",
        "albert.pooler.weight": "bert/pooler/dense/kernel",
        "predictions.dense.weight": "cls/predictions/transform/dense/kernel",
        "predictions.LayerNorm.weight": "cls/predictions/transform/LayerNorm/gamma",
        "predictions.bias": "cls/predictions/output_bias",
        "sop_classifier.classifier.weight": "cls/seq_relationship/output_weights",
        "sop_classifier.classifier.bias": "cls/seq_relationship/output_bias",
    },
    "electra discriminator": {
        "electra.embeddings.token_type_embeddings.weight": "electra/embeddings/token_type_embeddings",
        "electra.embeddings_project.weight": "electra/embeddings_project/kernel",
        "electra.encoder.layer.2.attention.self.query.weight": "electra/encoder/layer_2/attention/self/query/kernel",
        "electra.encoder.layer.2.output.LayerNorm.weight": "electra/encoder/layer_2/output/LayerNorm/gamma",
        "discriminator_predictions.dense.weight": "discriminator_predictions/dense/kernel",
        "discriminator_predictions.dense_prediction.weight": "discriminator_predictions/dense_1/kernel",
        "discriminator_predictions.dense_prediction.bias": "discriminator_predictions/dense_1/bias",
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_tensorflow_and_back(cases, name, tmp_path):
    """Names as in Google's releases; config.json without a model_type, as there."""
    case = cases(name)
    ours = load_model(case.folder)
    save_tensorflow(ours, tmp_path)
    held, theirs = open_bundle(tmp_path / "bert_model.ckpt"), case.theirs.state_dict()
    for key, variable in PUBLISHED[name].items():
        assert torch.equal(held[variable].T if variable.endswith("kernel") else held[variable], theirs[key]), variable
    values = json.loads((tmp_path / "bert_config.json").read_text(encoding="utf-8"))
    published = {key: value for key, value in values.items() if key not in ("model_type", "architectures", "fishpaw", "inner_group_num")}
    (tmp_path / "bert_config.json").write_text(json.dumps(published), encoding="utf-8")
    again, report = inspect(tmp_path, verify=False)
    assert report.family == name.split()[0] and not report.new and not report.unused and again.config == ours.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items())


def test_the_generator_beside_a_published_discriminator_is_not_read(cases, tmp_path):
    """Google's checkpoints hold both; the generator's layers are narrower."""
    save_tensorflow(load_model(cases("electra discriminator").folder), tmp_path)
    more = {"generator/encoder/layer_0/output/dense/kernel": (5, 5), "generator_predictions/dense/kernel": (5, 13),
            "generator_predictions/output_bias": (31,), "generator_predictions/LayerNorm/gamma": (13,)}  # fmt: skip
    held = dict(open_bundle(tmp_path / "bert_model.ckpt")) | {key: torch.randn(shape) for key, shape in more.items()}
    write_bundle(tmp_path / "bert_model.ckpt", held)
    model, report = inspect(tmp_path, verify=False)
    assert list(model.heads) == ["rtd"] and sorted(report.unused) == sorted(more)
