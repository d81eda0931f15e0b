"""The gated attention unit against a loop in fp64 and against bert4torch's; laws of a model made of such units."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch, Grid, Position, Rows, View
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.model.block import Surroundings
from fishpaw.model.gau import GatedAttention, build
from fishpaw.model.transformer import Transformer

torch.set_num_threads(1)
SHAPE = {"vocab_size": 37, "hidden_size": 13, "layers": 3, "attention_heads": 1, "head_size": 6, "intermediate_size": 22, "segments": 2,
         "max_positions": 29, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "activation": "swish", "heads": ("lm",),
         "block": "gau"}


def made(part=build, **changes):
    """A unit, far from uniform: scales near 1, offsets and biases that matter."""
    torch.manual_seed(0)
    found = part(ModelConfig(**{**SHAPE, **changes})).double().eval().requires_grad_(False)
    for name, parameter in found.named_parameters():
        if name.endswith(("bias", "offset", "attention.scale")) or name == "scale":
            torch.nn.init.normal_(parameter)
    return found


def view(queries, keys=None, b=2, start=0):
    rows = [Rows(*[torch.arange(t).expand(b, t)] * 3, torch.ones(b, t, dtype=torch.bool)) for t in (queries, keys or queries)]
    return View(grid=Grid(b, queries, start), source=Grid(b, keys or queries, start), q=rows[0], k=rows[1], position=Position())


def naive(unit, x, source, units, heads, keys, width):
    """x, source [t d] of one row, token by token, head by head."""
    values = units // heads
    bias = unit.project.bias if unit.project.bias is not None else torch.zeros(len(unit.project.weight), dtype=x.dtype)

    def parts(token):
        made = torch.stack([row @ token + shift for row, shift in zip(unit.project.weight, bias, strict=True)])
        made = made / (1 + (-made).exp())
        return made[:units], made[units : units + keys * values], made[units + keys * values :]

    def turned(z, row):
        shift = 0 if unit.offset is None else unit.offset[row]
        return unit.scale[row] * z + shift

    out = torch.zeros_like(x)
    for i in range(len(x)):
        u, _, asked = parts(x[i])
        mixed = []
        for head in range(heads):
            group = head // (heads // keys)
            scores = [turned(asked, head) @ turned(parts(token)[2], heads + group) / width**0.5 for token in source]
            total = sum(score.exp() for score in scores)
            mixed.append(sum(score.exp() / total * parts(token)[1][group * values :][:values]
                             for score, token in zip(scores, source, strict=True)))
        out[i] = unit.output.weight @ (u * torch.cat(mixed))
        if unit.output.bias is not None:
            out[i] += unit.output.bias
    return out


@pytest.mark.parametrize("biases", [("qkv", "output"), ()])
@pytest.mark.parametrize(("heads", "keys"), [(1, 1), (2, 2), (6, 2)])
@pytest.mark.parametrize("reads", [False, True])
def test_a_gated_attention_unit_is_its_loop(heads, keys, biases, reads):
    """With a source of its own, too: keys and values of T-TA come from the tokens."""
    changes = {"attention_heads": heads, "key_value_heads": keys, "head_size": 5, "intermediate_size": 12, "biases": biases}
    module = made(GatedAttention, **changes)
    assert (module.offset is None) == (module.project.bias is None) == (not biases)
    x, source = torch.randn(2, 2, 5, 13, dtype=torch.float64)
    expected = torch.stack([naive(module, one, other if reads else one, 12, heads, keys, 5) for one, other in zip(x, source, strict=True)])
    found, carry, weights = module(x.flatten(0, 1), [view(5)], source=source.flatten(0, 1) if reads else None, weights=True)
    assert float((found.view(2, 5, 13) - expected).abs().max()) < 1e-10
    assert carry == [None] and weights[0].shape == (2, heads, 5, 5)
    module.scale[0] *= 1.1                                           # the planted fault: another scale of the first head's queries
    assert float((module(x.flatten(0, 1), [view(5)])[0].view(2, 5, 13) - expected).abs().max()) > 1e-4


def test_several_views_are_laid_one_after_another():
    module, x = made(GatedAttention), torch.randn(19, 13, dtype=torch.float64)
    apart = torch.cat((module(x[:10], [view(5)])[0], module(x[10:], [view(3, b=3)])[0]))
    assert float((module(x, [view(5), view(3, b=3, start=10)])[0] - apart).abs().max()) < 1e-12


@pytest.mark.parametrize("norm_at", ["post", "pre"])
def test_pre_and_post_norm_are_their_formulas(norm_at):
    unit, x = made(norm_at=norm_at), torch.randn(14, 13, dtype=torch.float64)
    found, carry, maps = unit(x, Surroundings([view(7)]))
    if norm_at == "post":
        expected = unit.attention_norm(x + unit.attention(x, [view(7)])[0])
    else:
        expected = x + unit.attention(unit.attention_norm(x), [view(7)])[0]
    assert float((found - expected).abs().max()) < 1e-12 and (carry, maps) == (([None], None), ([None], None))
    assert unit.kernels == (unit.attention.kernel, None)


def test_dropout_acts_on_what_is_added_and_never_on_the_residual():
    unit = made(norm_at="pre", dropout=0.5, biases=()).train()
    unit.attention.output.weight.zero_()
    x = torch.randn(14, 13, dtype=torch.float64)
    assert torch.equal(unit(x, Surroundings([view(7)]))[0], x)


# A model of units

def model(**changes):
    torch.manual_seed(0)
    found = Transformer(ModelConfig(**{**SHAPE, **changes})).double().eval().requires_grad_(False)
    for layer in found.layers:
        torch.nn.init.normal_(layer.attention.scale)
    return found


TEXTS = [torch.randperm(37, generator=torch.Generator().manual_seed(1))[:length] for length in (7, 3, 11, 1)]


@pytest.mark.parametrize("changes", [
    {},
    {"position": "rotary", "mask": "causal", "norm_at": "pre"},
    {"position": "rotary", "mask": "unilm", "attention": "squared_relu"},
    {"attention": "softmax_plus", "residual_scores": True, "attention_heads": 2, "head_size": 4},
    {"attention": {"name": "sparse", "k": 2}, "mask": {"name": "causal", "window": 3}, "attention_heads": 2, "key_value_heads": 1,
     "head_size": 4},
    {"attention": "taylor", "stream": "positions", "mask": {"name": "full", "exclude_self": True}},
    {"norm": {"name": "rms", "scale": False}, "qk_norm": True, "biases": (), "distinct_layers": 1},
], ids=str)
def test_a_model_of_units_is_the_same_however_it_is_laid(changes):
    net = model(**changes)
    segments = [(torch.arange(len(text)) >= len(text) // 2).long() for text in TEXTS]
    alone = [net(text[None], segments=segment[None]).logits[0] for text, segment in zip(TEXTS, segments, strict=True)]
    width = max(map(len, TEXTS))
    for left in (False, True):
        sides = [(width - len(text), 0) if left else (0, width - len(text)) for text in TEXTS]
        cells, marks, keep = (torch.stack([functional.pad(one, side) for one, side in zip(ones, sides, strict=True)])
                              for ones in (TEXTS, segments, [torch.ones_like(text) for text in TEXTS]))
        batch = Batch.padded(cells, keep=keep.bool(), segments=marks)
        found = batch.unpack(net(batch).logits.flatten(0, 1))
        assert max(float((a - b).abs().max()) for a, b in zip(found, alone, strict=True)) < 1e-10
    packed = Batch.packed(TEXTS, segments=segments)
    found = packed.unpack(net(packed).logits)
    assert max(float((a - b).abs().max()) for a, b in zip(found, alone, strict=True)) < 1e-10
    assert float((alone[2] - alone[2].roll(1, 0)).abs().max()) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"attention": "squared_relu"}, {"residual_scores": True}, {"attention_heads": 2, "head_size": 4}],
                         ids=str)
def test_steps_and_beams_are_those_of_a_full_pass(changes):
    """Memories hold values wider than keys."""
    net = model(mask="causal", position="rotary", **changes)
    stepper = TransformerStepper(net)
    cells = torch.stack([functional.pad(text, (0, 11 - len(text))) for text in TEXTS[:3]])
    keep = torch.stack([torch.arange(11) < len(text) for text in TEXTS[:3]])
    stepper.start(Batch.padded(cells, keep=keep))
    stepper.select(torch.tensor([0, 0, 1, 2, 2]))
    rows = [TEXTS[0], TEXTS[0], TEXTS[1], TEXTS[2], TEXTS[2]]
    for turn, tokens in enumerate(torch.randint(37, (4, 5), generator=torch.Generator().manual_seed(2))):
        found = stepper.step(tokens)
        rows = [torch.cat((row, token[None])) for row, token in zip(rows, tokens, strict=True)]
        expected = torch.stack([net(row[None]).logits[0, -1] for row in rows])
        assert float((found - expected).abs().max()) < 1e-10
        if turn == 1:
            order = [1, 1, 2, 4, 3]
            stepper.select(torch.tensor(order))
            rows = [rows[place] for place in order]


def test_every_weight_of_a_unit_is_trained():
    net = model(attention_heads=2, head_size=4).train().requires_grad_()
    net(torch.randint(37, (3, 5))).logits.logsumexp(-1).sum().backward()
    layer = [parameter for name, parameter in net.named_parameters() if name.startswith("layers.1.")]
    assert len(layer) == 8 and all(float(parameter.grad.abs().max()) > 0 for parameter in layer)


def test_prepared_for_inference_it_is_the_same_to_rounding():
    net = model(position="rotary").float()
    ids = torch.randint(37, (3, 11))
    expected = net(ids).logits
    assert float((copy.deepcopy(net).prepare()(ids).logits - expected).abs().max()) < 1e-4
    half = copy.deepcopy(net).prepare(dtype=torch.bfloat16)(ids).logits
    assert float(functional.cosine_similarity(half.float(), expected, dim=-1).min()) > 0.9   # large weights: 0.94


@pytest.mark.parametrize(("changes", "says"), [
    ({"encoder": ModelConfig(vocab_size=3, hidden_size=4, layers=1, attention_heads=1, intermediate_size=3), "mask": "causal"}, "encoder"),
    ({"activation": "geglu"}, "geglu"),
    ({"norm_at": "mixed"}, "mixed"),
    ({"attention_heads": 3, "head_size": 4}, "intermediate_size 22 is not a multiple of attention_heads 3"),
])
def test_what_a_unit_has_no_place_for_is_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        model(**changes)


def test_what_nezha_mixes_in_is_as_wide_as_the_values():
    net = model(position={"name": "nezha", "reach": 3}, attention="squared_relu")
    unit, order = net.layers[0].attention, torch.arange(7)
    seen = {}
    unit.kernel.register_forward_hook(lambda kernel, given, out: seen.update(given=given, out=out.out))
    net(TEXTS[0][None])
    q, k, v, view = seen["given"][:4]
    assert q.shape[-1] != v.shape[-1]
    index = (order[None, :] - order[:, None]).clip(-3, 3) + 3                    # [q k]

    def rows(width):                                                 # sin in even columns, cos in odd ones
        angle = torch.arange(7, dtype=torch.float64)[:, None] / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]

    scores = (q[0] @ k[0].mT + torch.einsum("hqd,qkd->hqk", q[0], rows(q.shape[-1])[index])) / q.shape[-1] ** 0.5
    shares = unit.kernel.shares(scores[None], view)[0]
    expected = shares @ v[0] + torch.einsum("hqk,qke->hqe", shares, rows(v.shape[-1])[index])
    assert float((seen["out"][0] - expected).abs().max()) < 1e-10
    assert float((seen["out"][0] - shares @ v[0]).abs().max()) > 1e-3            # the planted fault: nothing mixed in


# bert4torch

@pytest.mark.parity
@pytest.mark.parametrize("normalization", ["softmax", "squared_relu", "softmax_plus"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_a_unit_is_bert4torchs(normalization, bias, rotary):
    """Its softmax_plus takes l as it is: from 16 keys on the same as bert4keras's and ours."""
    layer = bert4torch("layers.attention.attention_layer").GatedAttention
    length, options = 23, {"pos_emb_type": "rotary", "max_position": 64} if rotary else {}
    theirs = layer(hidden_size=13, attention_key_size=6, intermediate_size=22, attention_probs_dropout_prob=0.0, hidden_act="swish",
                   use_bias=bias, normalization=normalization, **options).double().eval().requires_grad_(False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    ours = made(GatedAttention, attention=normalization, biases=("qkv", "output") if bias else (), position="rotary" if rotary else "none")
    pairs = {"project.weight": theirs.i_dense.weight, "output.weight": theirs.o_dense.weight, "scale": theirs.offsetscale.gamma}
    if bias:
        pairs |= {"project.bias": theirs.i_dense.bias, "output.bias": theirs.o_dense.bias, "offset": theirs.offsetscale.beta}
    ours.load_state_dict(pairs)
    x = torch.randn(2, length, 13, dtype=torch.float64)
    keep = torch.ones(2, length, dtype=torch.bool)
    keep[1, 19:] = False
    expected = theirs(x, keep[:, None, None].double(), torch.arange(length)[None])
    seen = laid(keep, rotary)
    found = ours(x.flatten(0, 1), [seen])[0].view(2, length, 13)
    size = float(expected[keep].abs().max())
    limit = 1e-6 if rotary or normalization == "softmax_plus" else 1e-12                            # their tables and logarithms are fp32
    assert float((found - expected)[keep].abs().max()) < limit * size
    swapped = {**pairs, "scale": theirs.offsetscale.gamma.flip(0) + 0.1}                            # the planted fault
    ours.load_state_dict(swapped)
    assert float((ours(x.flatten(0, 1), [seen])[0].view(2, length, 13) - expected)[keep].abs().max()) > 1e-3 * size


class Unweighted(torch.nn.Module):
    def __init__(self, size):
        super().__init__()

    def forward(self, x, condition=None):
        return functional.layer_norm(x, x.shape[-1:], eps=1e-12)


@pytest.mark.parity
def test_a_model_of_units_is_bert4torchs_gau_alpha():
    """GAU-alpha: rotary, softmax_plus, norms without weights after each unit, no bias anywhere, and the head is the token table. Its norm
    is {"name": "rms", "scale": False} in bert4keras; that of bert4torch 0.6.2 takes the mean off, and so does the stand-in here."""
    theirs = bert4torch("models.gau_alpha.modeling_gau_alpha").GAU_alpha(
        vocab_size=37, hidden_size=14, num_hidden_layers=3, num_attention_heads=1, attention_key_size=6, attention_head_size=6,
        intermediate_size=22, hidden_act="swish", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=2,
        segment_vocab_size=2, max_position=64, max_position_embeddings=64, with_mlm="linear", normalization="softmax_plus",
        pos_emb_type="rotary", use_bias=False, pad_token_id=0, layer_norm_eps=1e-12).double().eval().requires_grad_(False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    ours = model(hidden_size=14, attention="softmax_plus", position="rotary", norm=Unweighted, embedding_norm=False, biases=(),
                 heads=({"name": "lm", "bias": False},))
    pairs = {"embedding.tokens.weight": "embeddings.word_embeddings.weight",
             "embedding.segments.weight": "embeddings.segment_embeddings.weight"}
    for layer in range(3):
        pairs |= {f"layers.{layer}.attention.{mine}": f"encoderLayer.{layer}.gau.{other}" for mine, other in
                  (("project.weight", "i_dense.weight"), ("scale", "offsetscale.gamma"), ("output.weight", "o_dense.weight"))}
    weights = theirs.state_dict()
    ours.load_state_dict({mine: weights[other] for mine, other in pairs.items()})
    theirs.mlmDecoder.weight.data.copy_(weights["embeddings.word_embeddings.weight"])
    ids, segments = torch.randint(1, 37, (2, 23)), (torch.arange(23) > 9).long().expand(2, 23).clone()
    keep = torch.ones(2, 23, dtype=torch.bool)
    ids[1, 19:], keep[1, 19:] = 0, False
    hidden, logits = theirs([ids, segments])
    found = ours(ids, segments=segments, padding=keep)
    assert float((found.hidden - hidden)[keep].abs().max()) < 1e-4                                  # their tables are fp32
    assert float((found.logits - logits)[keep].abs().max()) < 1e-3
    ours.layers[2].attention.scale.mul_(1.1)                         # the planted fault
    assert float((ours(ids, segments=segments, padding=keep).hidden - hidden)[keep].abs().max()) > 1e-2


def laid(keep, rotary):
    from fishpaw.positions.rotary import build as turning

    b, t = keep.shape
    order = torch.arange(t).expand(b, t)
    rows = Rows(order, order, torch.zeros_like(order), keep)
    position = turning(ModelConfig(**SHAPE)) if rotary else Position()
    return View(grid=Grid(b, t), source=Grid(b, t), q=rows, k=rows, position=position, mask=keep[:, None, None],
                at=position.at(order, order, order, torch.float64))


def bert4torch(part):
    """A module of bert4torch. Release 0.6.2 imports torchvision, undeclared, for models that nobody asked for: empty modules stand in."""
    if importlib.util.find_spec("bert4torch") is None:
        pytest.skip("bert4torch is not installed")
    names = [] if importlib.util.find_spec("torchvision") else ["torchvision" + rest for rest in ("", ".transforms", ".transforms.v2",
                                                                                              ".transforms.v2.functional")]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")                              # torch.jit.script
        for name in names:
            module = ModuleType(name)
            module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
            patch.setitem(sys.modules, name, module)
            if "." in name:
                setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
        return importlib.import_module(f"bert4torch.{part}")
