"""The forms of linear attention are one function: dense, in chunks of any length, and as a state, with their gradients, for every mask.

Hard checks of linear attention (arXiv:2006.16236): forms agree to 1e-10 in fp64 and 1e-5 in fp32; the future changes no bit; a state that
goes on is the whole text.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from fishpaw.attention import recurrence
from fishpaw.attention.memory import State
from fishpaw.attention.recurrence import LinearKind, Maps
from fishpaw.contracts import Batch, Grid, Position, Rows, View
from fishpaw.errors import ConfigError
from fishpaw.masks import Mask
from fishpaw.positions.rotary import build as rotary

torch.set_num_threads(1)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}              # only the order of the sums differs
B, H, N, D, E = 2, 3, 13, 5, 7


class Exponential(LinearKind):
    """[e^x, x² + 1/2]: features wider than the head and not alike for queries and keys."""

    def __init__(self, chunk=4, turns="vectors"):
        super().__init__()
        self.chunk, self.turns = chunk, turns

    def queries(self, q):
        return torch.cat((q.exp(), q.square() + 0.5), dim=-1)

    def keys(self, k):
        return torch.cat((k.exp() / 2, k.square() + 1), dim=-1)


class Even(Exponential):
    """Features as wide as the head, which rotary positions can turn."""

    def queries(self, q):
        return q.exp()

    def keys(self, k):
        return k.exp() + 1


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def triple(dtype=torch.float64, n=N, columns=E):
    return [drawn(B, H, n, width, dtype=dtype, seed=seed) / 2 for seed, width in enumerate((D, D, columns))]


def maps(chunk, similarity=False, few=0):
    kind = Exponential()
    return Maps(kind.queries, kind.keys, (lambda q, k: kind.queries(q) @ kind.keys(k).mT) if similarity else None, chunk, few)


TRIANGLES = {
    "full": (recurrence.full, torch.ones(N, N)),
    "causal": (recurrence.causal, torch.ones(N, N).tril()),
    "strict": (lambda *given: recurrence.causal(*given, strict=True), torch.ones(N, N).tril(-1)),
    "backward": (recurrence.backward, torch.ones(N, N).triu(1)),
}


def with_gradients(form, inputs):
    inputs = [one.clone().requires_grad_() for one in inputs]
    out = form(*inputs)
    (out * drawn(*out.shape, dtype=out.dtype, seed=9)).sum().backward()
    return [out.detach(), *(one.grad for one in inputs)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 12, 13, 64])
@pytest.mark.parametrize("similarity", [False, True])
@pytest.mark.parametrize("name", TRIANGLES)
def test_chunks_of_any_length_are_the_dense_form_with_their_gradients(name, similarity, chunk, dtype):
    form, allowed = TRIANGLES[name]
    found = with_gradients(lambda *inputs: form(*inputs, maps(chunk, similarity)), triple(dtype))
    expected = with_gradients(lambda *inputs: recurrence.dense(*inputs, maps(1), allowed=allowed.bool()), triple(dtype))
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= TOLERANCE[dtype] * max(1, float(other.abs().max()))


@pytest.mark.parametrize("few", [12, 13])
@pytest.mark.parametrize("name", TRIANGLES)
def test_few_tokens_are_served_by_the_similarity_alone(name, few):
    form, allowed = TRIANGLES[name]
    expected = recurrence.dense(*triple(), maps(1), allowed=allowed.bool())
    assert float((form(*triple(), maps(4, similarity=True, few=few)) - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("name", TRIANGLES)
def test_the_dense_form_is_a_loop(name):
    q, k, v = triple()
    kind, found = Exponential(), recurrence.dense(*triple(), maps(1), allowed=TRIANGLES[name][1].bool())
    for i in range(N):
        expected = torch.zeros(B, H, E, dtype=torch.float64)
        for j in range(N):
            if TRIANGLES[name][1][i, j]:
                expected += (kind.queries(q[:, :, i]) * kind.keys(k[:, :, j])).sum(-1, keepdim=True) * v[:, :, j]
        assert float((found[:, :, i] - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("strict", [False, True])
def test_a_lone_column_of_plain_features_is_counted_to_the_same(strict, dtype):
    q, k, _ = triple(dtype)
    q, k, v = q.exp(), k.exp(), drawn(B, H, N, 1, dtype=dtype).relu()
    state = drawn(B, H, D, 1, dtype=dtype, seed=5)

    def count(q, k, v, state):
        return recurrence.causal(q, k, v, strict=strict, state=state)

    def product(q, k, v, state):
        return recurrence.dense(q, k, v, allowed=torch.ones(N, N).tril(-int(strict)).bool(), state=state)

    for one, other in zip(*(with_gradients(form, (q, k, v, state)) for form in (count, product)), strict=True):
        assert float((one - other).abs().max()) <= TOLERANCE[dtype] * max(1, float(other.abs().max()))


@pytest.mark.parametrize("cuts", [[13], [1] * 13, [5, 1, 4, 3], [1, 12], [12, 1]])
@pytest.mark.parametrize("strict", [False, True])
def test_a_state_goes_on_as_the_whole_text(strict, cuts):
    q, k, v = triple()
    state, found = None, []
    for ask, one, values in zip(q.split(cuts, 2), k.split(cuts, 2), v.split(cuts, 2), strict=True):
        found.append(recurrence.causal(ask, one, values, maps(4), strict=strict, state=state))
        state = recurrence.gather(one, values, maps(3), state=state)
    whole = recurrence.causal(q, k, v, maps(64), strict=strict)
    assert float((torch.cat(found, 2) - whole).abs().max()) < 1e-10
    assert float((recurrence.read(q, state, maps(4)) - recurrence.full(q, k, v, maps(64))).abs().max()) < 1e-10


def test_heads_are_repeated_without_a_copy_where_each_has_keys_of_its_own():
    x = drawn(B, H, N, D)
    assert recurrence.repeated(x, H).data_ptr() == x.data_ptr()
    assert torch.equal(recurrence.repeated(x, 2 * H), x.repeat_interleave(2, dim=1))


# A kind with every mask

def facts(times, keep, left=False):
    keep = torch.tensor(keep, dtype=torch.bool)
    order = (keep.cumsum(1) - 1).clamp_min(0)
    return Rows(order, order, torch.tensor(times), keep)


def view(rows, clock, rules=(), position=None, lanes=1):
    grid = Grid(*rows.keep.shape)
    position = position or Position()
    return View(grid, grid, rows, rows, position, position.at(rows.position, rows.position, rows.position, torch.float64), clock, rules,
                lanes=lanes)


def naive(kind, q, k, v, around, mask):
    """Loops; weights [b h q k] and out, from nothing but the mask's own truth table and the definition."""
    if kind.turns == "vectors":
        q, k = around.position.rotate(q, k, around.at)
        above = below = torch.einsum("bhqf,bhkf->bhqk", kind.queries(q), kind.keys(k))
    else:
        q, k = kind.queries(q), kind.keys(k)
        below = torch.einsum("bhqf,bhkf->bhqk", q, k)
        above = torch.einsum("bhqf,bhkf->bhqk", *around.position.rotate(q, k, around.at))
    seen = mask.allowed(around.q, around.k)[:, None]
    total = (below * seen).sum(-1, keepdim=True)
    shares = torch.where(total == 0, 0, above * seen / total)
    return shares, shares @ v


def laid(kept, left):
    return [[1] * n + [0] * (N - n) if not left else [0] * (N - n) + [1] * n for n in kept]


def timed(mask, keep, segments):
    order = (torch.tensor(keep).cumsum(1) - 1).clamp_min(0)
    return mask.times(order, torch.tensor(segments) if mask.clock == "unilm" else None).tolist()


SOURCES = {
    "source first": [[0] * 5 + [1] * 8, [0] * 9 + [1] * 4],
    "no source": [[1] * 13, [1] * 13],
    "source alone": [[0] * 13, [0] * 13],
    "ties later on": [[0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], [0] * 9 + [1] * 4],
    "long segments": [[0] * 4 + [1] * 4 + [2] * 5, [0] * 3 + [3] * 10],
}
FIRST = ["source first"]                                             # segments are read by UniLM's clock alone
MASKS = [Mask(clock, exclude_self=hidden) for clock in ("full", "causal", "unilm") for hidden in (False, True)]


@pytest.mark.parametrize("turns", ["vectors", "features", "unturned"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("mask", "source"), [(mask, one) for mask in MASKS for one in (SOURCES if mask.clock == "unilm" else FIRST)], ids=str
)
def test_every_mask_is_its_truth_table(mask, source, left, turns):
    kind = Even(turns="features" if turns == "features" else "vectors")
    keep = laid((13, 10), left)
    position = None if turns == "unturned" else rotary(type("Config", (), {"width": 6}))
    around = view(facts(timed(mask, keep, SOURCES[source]), keep), mask.clock, mask.rules, position)
    q, k, v = (drawn(2, H, N, width, seed=seed) for seed, width in enumerate((6, 6, E)))
    shares, expected = naive(kind, q, k, v, around, mask)
    kept = around.k.keep[:, None, :, None]
    found, shown = kind(q, k, v, around), kind(q, k, v, around, weights=True)
    assert float(((found.out - expected) * kept).abs().max()) < 1e-10 and found.weights is None
    assert float(((shown.out - expected) * kept).abs().max()) < 1e-10
    assert float(((shown.weights - shares) * kept).abs().max()) < 1e-10


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_what_is_hidden_changes_no_bit(mask):
    """Of causal masks the future, of exclude_self one's own token; in fp32, where a sum with another term would show."""
    kind, keep = Exponential(chunk=4), laid((13, 13), False)
    rows = facts(timed(mask, keep, SOURCES["source first"]), keep)
    around, allowed = view(rows, mask.clock, mask.rules), mask.allowed(rows, rows)
    q, k, v = triple(torch.float32)
    before = kind(q, k, v, around).out
    for j in range(N):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, :, j], other_v[:, :, j] = 3 * k[:, :, j] + 1, 100 - v[:, :, j]
        same = (kind(q, other_k, other_v, around).out == before).all(-1).all(1)                     # [b q]
        assert bool(same[~allowed.expand(2, N, N)[:, :, j]].all()) and not bool(same[allowed.expand(2, N, N)[:, :, j]].any())


def test_a_token_taken_off_again_is_caught():
    """The planted fault: all keys less one's own leaves rounding of what was added and subtracted."""
    q, k, v = triple(torch.float32)
    kind = Exponential()

    def less(v):
        own = (kind.queries(q) * kind.keys(k)).sum(-1, keepdim=True) * v
        return recurrence.full(q, k, v, maps(4)) - own

    other = v.clone()
    other[:, :, 5] = 100 - v[:, :, 5]
    assert not torch.equal(less(v)[:, :, 5], less(other)[:, :, 5])


@pytest.mark.parametrize("turns", ["vectors", "features"])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_query_that_sees_nothing_gets_0_and_finite_gradients(mask, turns):
    kind = Even(turns=turns)
    keep = [[1] + [0] * 12, [0] * 13]                                # a lone token, and a row of padding
    around = view(facts(timed(mask, keep, SOURCES["source first"]), keep), mask.clock, mask.rules, rotary(type("Config", (), {"width": 6})))
    inputs = [drawn(2, H, N, 6, seed=seed).requires_grad_() for seed in range(3)]
    for weights in (False, True):
        out = kind(*inputs, around, weights=weights).out
        out.square().sum().backward()
        assert all(bool(one.grad.isfinite().all()) for one in inputs)
        assert float(out[1].detach().abs().max()) == 0
        lone = 0 if mask.exclude_self else inputs[2][0, :, 0].detach()
        assert float((out[0, :, 0].detach() - lone).abs().max()) < 1e-10


@pytest.mark.parametrize("mask", MASKS[:2], ids=str)
def test_padding_is_not_read(mask):
    kind, keep = Exponential(), laid((11, 7), True)
    around = view(facts(timed(mask, keep, SOURCES["source first"]), keep), mask.clock, mask.rules)
    kept = around.k.keep[:, None, :, None]
    q, k, v = triple()
    noise = [torch.where(kept, one, 5 * drawn(*one.shape, seed=8)) for one in (k, v)]
    assert torch.equal(kind(q, k, v, around).out * kept, kind(q, *noise, around).out * kept)


def test_fewer_key_heads_are_shared_by_neighbouring_query_heads():
    kind, around = Exponential(), view(facts([list(range(N))] * 2, laid((13, 9), False)), "causal")
    q, k, v = drawn(2, 6, N, D), drawn(2, 2, N, D, seed=1), drawn(2, 2, N, E, seed=2)
    expected = kind(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), around).out
    assert torch.equal(kind(q, k, v, around).out, expected)
    assert float((kind(q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1), around).out - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("clock", ["full", "causal"])
def test_bf16_is_summed_in_fp32_also_under_autocast(clock):
    kind, n = Even(chunk=64), 1021
    around = view(Rows(*(torch.arange(n)[None],) * 3, torch.ones(1, n, dtype=torch.bool)), clock)
    q, k, v = (drawn(1, 2, n, 8, seed=seed).bfloat16() for seed in range(3))
    exact = kind(q.double(), k.double(), v.double(), around).out
    found = kind(q, k, v, around).out
    assert found.dtype == torch.bfloat16 and float((found.double() - exact).abs().max()) < 2**-8 * float(exact.abs().max())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float((kind(q.float(), k.float(), v.float(), around).out - exact).abs().max()) < 1e-5


# What is remembered

def step(kind, memory, columns, whole, rows, lanes=1):
    q, k, v = (one[:, :, columns] for one in whole)
    return kind(q, k, v, view(rows.map(lambda fact: fact[:, columns]), "causal", lanes=lanes), memory=memory).out


def test_a_memory_is_of_one_size_however_long_the_text():
    kind, memory = Exponential(), Exponential().memory()
    rows = Rows(*(torch.arange(N).expand(2, N),) * 3, torch.ones(2, N, dtype=torch.bool))
    whole, sizes = triple(), set()
    found = [step(kind, memory, slice(0, 4), whole, rows)]
    for i in range(4, N):
        found.append(step(kind, memory, slice(i, i + 1), whole, rows))
        sizes.add(sum(one.numel() for one in memory.sums))
    assert sizes == {B * H * 2 * D * (E + 1)}
    assert float((torch.cat(found, 2) - kind(*whole, view(rows, "causal")).out).abs().max()) < 1e-10


def test_an_encoder_is_read_from_the_sums_by_every_lane():
    kind, memory = Exponential(), Exponential().memory()
    keys = facts([[0] * N] * 2, laid((13, 8), False))
    q, k, v = triple()
    asked = view(keys, "full")
    whole = kind(q, k, v, asked).out
    assert float((kind(q, k, v, asked, memory=memory).out - whole).abs().max()) < 1e-10
    beams = torch.cat((q, q.flip(2)), dim=2)                         # two lanes, each with 13 queries
    double = keys.map(lambda fact: fact.repeat(1, 2))
    found = kind(beams, None, None, View(Grid(2, 2 * N), asked.grid, double, keys, Position(), lanes=2), memory=memory).out
    assert float((found - torch.cat((whole, whole.flip(2)), 2)).abs().max()) < 1e-10
    with pytest.raises(ValueError, match="needs a memory"):
        kind(q, None, None, asked, memory=State())


def test_a_step_has_no_attention_maps():
    kind, memory = Exponential(), Exponential().memory()
    rows = Rows(*(torch.arange(N).expand(2, N),) * 3, torch.ones(2, N, dtype=torch.bool))
    step(kind, memory, slice(0, 4), triple(), rows)
    with pytest.raises(ConfigError, match="no attention maps"):
        kind(*triple(), view(rows, "causal"), memory=memory, weights=True)


def test_a_graph_for_any_length_is_the_same():
    class Reader(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kind = Exponential()

        def forward(self, q, k, v):
            batch = Batch.padded(q[:, 0, :, 0].long())
            return self.kind(q, k, v, view(batch.rows[0], "causal")).out

    length = torch.export.Dim("n", min=2, max=64)
    inputs = tuple(triple())
    graph = torch.export.export(Reader(), inputs, dynamic_shapes=[{2: length}] * 3).module()
    longer = tuple(functional.pad(one, (0, 0, 0, 6), value=0.3) for one in inputs)
    assert float((graph(*longer) - Reader()(*longer)).abs().max()) < 1e-10
