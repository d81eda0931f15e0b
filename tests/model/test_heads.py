"""Heads against their formulas, tied tables, and combinations that can't be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fishpaw.config import ModelConfig
from fishpaw.errors import ConfigError
from fishpaw.model import heads
from fishpaw.model.transformer import Transformer
from fishpaw.weights.load import load_model
from fishpaw.weights.save import save

torch.set_num_threads(1)
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [0, 0, 5, 3, 5]])
KEEP = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
FIRST, LAST = [0, 0, 2], [4, 2, 4]


def tiny(*names, **changes):
    shape = {"vocab_size": 37, "hidden_size": 14, "layers": 2, "attention_heads": 2, "intermediate_size": 17, "init_std": 0.6}
    return Transformer(ModelConfig(**{**shape, "heads": names, **changes})).double().eval().requires_grad_(False)


@pytest.mark.parametrize(("at", "place"), [("first", FIRST), ("last", LAST)])
@pytest.mark.parametrize(("name", "function"), [("tanh", torch.tanh), ("linear", lambda x: x), ("relu", torch.relu)])
def test_the_pooler_reads_the_first_or_the_last_token(name, function, at, place):
    model = tiny({"name": "pooler", "activation": name, "at": at}, "nsp", {"name": "classifier", "labels": ["甲", "乙", "丙"]})
    out, pooler = model(IDS, padding=KEEP), model.heads["pooler"]
    chosen = out.hidden[torch.arange(3), torch.tensor(place)]
    pooled = function(chosen @ pooler.dense.weight.T + pooler.dense.bias)
    assert float((out.pooled - pooled).abs().max()) < 1e-12
    for logits, head in ((out.nsp, model.heads["nsp"]), (out.classes, model.heads["classifier"])):
        assert float((logits - (pooled @ head.dense.weight.T + head.dense.bias)).abs().max()) < 1e-12
    assert out.nsp.shape == (3, 2) and out.classes.shape == (3, 3) and out.logits is None


@pytest.mark.parametrize("size", [14, 9])
@pytest.mark.parametrize("tied", [True, False])
def test_mlm_is_its_formula_tied_or_not(tied, size):
    model = tiny("mlm", embedding_size=size, tie_embeddings=tied)
    head = model.heads["mlm"]
    torch.nn.init.normal_(head.bias)
    out = model(IDS, padding=KEEP)
    x = head.norm(functional.gelu(out.hidden @ head.dense.weight.T + head.dense.bias))
    table = model.embedding.tokens.weight if tied else head.decoder.weight
    assert x.shape[-1] == size and float((out.logits - (x @ table.T + head.bias)).abs().max()) < 1e-12


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_lm_is_a_product_with_the_table(tied, bias):
    model = tiny({"name": "lm", "bias": bias}, tie_embeddings=tied)
    head, out = model.heads["lm"], model(IDS)
    table = model.embedding.tokens.weight if tied else head.decoder.weight
    assert (head.bias is not None) is bias and float((out.logits - out.hidden @ table.T).abs().max()) < 1e-12


def test_a_tied_table_is_one_tensor_and_learns_from_both_sides():
    model = tiny("mlm").requires_grad_(True)
    assert not [name for name in model.state_dict() if "decoder" in name]
    out = model(IDS)
    table = model.embedding.tokens.weight
    both, = torch.autograd.grad(out.logits.sum(), table)
    assert float(both[20:].abs().max()) > 0                          # tokens that the text lacks: through the head alone
    before = out.logits.detach()
    with torch.no_grad():
        table[20, 0] += 1
    change = (model(IDS).logits.detach() - before).abs().amax((0, 1))
    assert change[20] > 1e-3 and float(change[:20].max()) == 0


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (("nsp",), {}, "nsp reads the pooler"),
        (({"name": "classifier", "labels": ["a"]},), {}, 'Add "pooler"'),
        (("mlm", "lm"), {}, "mlm makes logits, and so does another"),
        (("lm",), {"embedding_size": 9}, "'lm' can't be tied: the embedding is 9 wide, the hidden state 14"),
        (("mlm", "mlm"), {}, "names 'mlm' twice"),
        (("mlmm",), {}, "Did you mean 'mlm'"),
        ((lambda config: None,), {}, "part of your own.*output.hidden"),
        (("os:system",), {}, "part of your own"),
        (({"name": "pooler", "at": "middle"},), {}, "at is 'middle'.*first"),
        (({"name": "pooler", "activation": "tanhh"},), {}, "no activation .tanhh"),
        (("pooler", "classifier"), {}, "classifier.*labels"),
        (("pooler", {"name": "classifier", "labels": []}), {}, r"labels are \[\]"),
        (("pooler", {"name": "classifier", "labels": "ab"}), {}, "labels are 'ab'"),
        (("pooler", {"name": "classifier", "labels": ["a", "a"]}), {}, "different names"),
        (("pooler", {"name": "classifier", "labels": [1, 2]}), {}, "different names"),
    ],
)
def test_heads_that_can_not_be_are_refused(names, changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*names, **changes)


def test_an_untied_lm_may_be_wider_than_its_table():
    assert tiny("lm", embedding_size=9, tie_embeddings=False)(IDS).logits.shape == (3, 5, 37)


def test_a_classifier_keeps_its_labels_and_drops_in_training_only():
    head = heads.classifier(tiny().config, labels=["好", "坏"], multi_label=True, dropout=0.5)
    assert head.labels == ("好", "坏") and head.multi_label
    x = torch.randn(5, 14)
    assert torch.equal(head.eval()(x), head(x)) and not torch.equal(head.train()(x), head(x))


def test_the_discriminator_scores_every_token():
    model = tiny("rtd", activation="relu")
    out, head = model(IDS, padding=KEEP), model.heads["rtd"]
    made = torch.relu(out.hidden @ head.dense.weight.T + head.dense.bias)
    assert out.replaced.shape == (3, 5)
    assert float((out.replaced - (made @ head.score.weight.T + head.score.bias)[..., 0]).abs().max()) < 1e-12


def test_a_scaled_language_model_scales_its_hidden_states():
    plain, scaled = tiny("lm"), tiny({"name": "lm", "scale": 0.25})
    scaled.load_state_dict(plain.state_dict())
    assert float((scaled(IDS).logits - 0.25 * plain(IDS).logits).abs().max()) < 1e-12
    for bad in (0, -1.0, True, float("nan"), "1"):
        with pytest.raises(ConfigError, match="scale"):
            tiny({"name": "lm", "scale": bad})
    for bad in (-1, 37, True, "1"):
        with pytest.raises(ConfigError, match="start"):
            tiny({"name": "lm", "start": bad})


def test_the_mlm_head_may_have_an_activation_of_its_own():
    own, plain = tiny({"name": "mlm", "activation": "relu"}, activation="tanh"), tiny({"name": "mlm"}, activation="tanh")
    plain.load_state_dict(own.state_dict())
    head, hidden = own.heads["mlm"], own(IDS).hidden
    made = head.norm(torch.relu(hidden @ head.dense.weight.T + head.dense.bias)) @ own.table.T + head.bias
    assert float((own(IDS).logits - made).abs().max()) < 1e-10 < 1e-3 < float((plain(IDS).logits - made).abs().max())
    with pytest.raises(ConfigError, match="no activation 'rely'"):
        tiny({"name": "mlm", "activation": "rely"})


ENDING = {"name": "self_terminating", "epsilon": 1e-4, "end": 3}


@pytest.mark.parametrize("name", ["self_terminating", "non_monotone"])
def test_an_ending_is_saved_with_its_model_and_changes_no_logits(name, tmp_path, caplog):
    """gpt2 is a layout that transformers opens; with an ending it must not be, for there the logits would go through a softmax."""
    shape = {"family": "gpt2", "mask": "causal", "norm_at": "pre", "embedding_norm": False, "segments": 0}
    plain, model = tiny("lm", **shape), tiny({"name": "lm", "ending": {**ENDING, "name": name}}, **shape)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(plain(IDS).logits, model(IDS).logits)
    for one, said in ((plain, ""), (model, "transformers can't open. It has no counterpart of the head {'name': 'lm', 'ending'")):
        caplog.clear()
        save(one, tmp_path / "model")
        assert said in caplog.text and bool(caplog.text) is bool(said)
        again = load_model(str(tmp_path / "model")).double()
        assert again.config.heads == one.config.heads and again.heads["lm"].ending == one.heads["lm"].ending
    assert again.heads["lm"].ending == heads.Ending(name, 1e-4, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "terminating"}, "name is 'terminating'.*self_terminating"),
        ({"name": "os:system"}, "name is 'os:system'"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon": 1.0}, "epsilon is 1.0"),
        ({"epsilon": "0.1"}, "epsilon is '0.1'"),
        ({"end": 37}, "end is 37.*from 0 to 36"),
        ({"end": True}, "end is True"),
        ({"rate": 0.1}, "ending is .*rate"),
    ],
)
def test_an_ending_that_can_not_be_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        tiny({"name": "lm", "ending": {**ENDING, **change}})
    for bad in ("self_terminating", {"name": "self_terminating"}, [ENDING]):
        with pytest.raises(ConfigError, match="The head's ending is "):
            tiny({"name": "lm", "ending": bad})
