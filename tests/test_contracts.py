"""What the contracts must carry, each with a part of a few lines that the model gets as a callable; and laws of every part there is.

fp64 throughout, tolerance 1e-10 unless a comment says otherwise: only the order of the sums differs.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional

from fishpaw import switch
from fishpaw.attention.softmax import Softmax
from fishpaw.config import ModelConfig
from fishpaw.contracts import Attended, Attention, Batch, Position
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.model.cache import Cache
from fishpaw.model.transformer import Transformer
from fishpaw.positions.sinusoidal import sinusoids

torch.set_num_threads(1)
LENGTHS = (7, 3, 11, 1, 9, 5, 10)                                    # packed: a ragged group and four of one
UNSEEN = {"name": "full", "exclude_self": True}


def tiny(seed=0, **changes):
    """A model of odd sizes with weights large enough for attention to be far from uniform."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 37, "hidden_size": 23, "layers": 3, "attention_heads": 3, "head_size": 10, "intermediate_size": 29,
             "max_positions": 43, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.6, "heads": ("lm",)}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval().requires_grad_(False)


def texts(lengths=LENGTHS):
    """Sequences of different tokens, and segments: a source, then a target."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randperm(37, generator=generator)[:length] for length in lengths]
    return ids, [(torch.arange(length) >= (length + 1) // 2).long() for length in lengths]


def pad(sequences, left=False):
    width = max(map(len, sequences))
    cells = torch.zeros(len(sequences), width, dtype=torch.long)
    keep = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, one in enumerate(sequences):
        place = slice(width - len(one), width) if left else slice(0, len(one))
        cells[row, place], keep[row, place] = one, True
    return cells, keep


def padded(ids, segments, left=False):
    cells, keep = pad(ids, left)
    return Batch.padded(cells, keep=keep, segments=pad(segments, left)[0])


def alone(model, ids, segments, **given):
    return [model(one[None], segments=segment[None], **given).logits[0] for one, segment in zip(ids, segments, strict=True)]


def far(found, expected):
    """The largest difference; of lists, over all."""
    assert len(found) == len(expected) and all(a.shape == b.shape for a, b in zip(found, expected, strict=True))
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def assert_same_however_laid(model):
    """One by one = padded right = padded left = packed."""
    ids, segments = texts()
    expected = alone(model, ids, segments)
    for left in (False, True):
        batch = padded(ids, segments, left)
        assert far(batch.unpack(model(batch).logits.flatten(0, 1)), expected) < 1e-10
    packed = Batch.packed(ids, segments=segments)
    assert far(packed.unpack(model(packed).logits), expected) < 1e-10
    assert far(expected, [one.roll(1, 0) for one in expected]) > 1e-3            # far from constant: the comparison could fail


def walk_tree(model, seed=0, turns=9, left=False, sources=None, cache=None):
    """A random tree of steps, moves and compactions over prompts of different lengths: the largest difference from each row read anew."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ids, segments = texts((5, 2, 7, 3))
    rows = [(prompt, ids[prompt], segments[prompt]) for prompt in range(len(ids))]
    stepper, generated = TransformerStepper(model, room=seed % 5 or None), int(model.mask.clock == "unilm")

    def anew(prompt, tokens, segment):
        read = {} if sources is None else {"encoder_batch": Batch.padded(sources[prompt][None])}
        return alone(model, [tokens], [segment], **read)[0]

    encoder_batch = None if sources is None else padded(sources, [torch.zeros_like(one) for one in sources], left)
    logits = stepper.start(padded(ids, segments, left), encoder_batch)
    if cache is not None:
        stepper.cache.__class__ = cache
    worst = far(logits, [anew(*row)[-1] for row in rows])
    for turn in range(turns):
        if turn % 2 == 0:
            index = []
            for prompt in sorted({row[0] for row in rows}):
                mine = [place for place, row in enumerate(rows) if row[0] == prompt]
                leaves = (turn, prompt) in ((4, 1), (8, 3))
                index += [] if leaves else chance.choices(mine, k=chance.choice([1, 2, 3]))
            stepper.select(torch.tensor(index))
            rows = [rows[place] for place in index]
        if turn % 3 == 2:
            stepper.compact()
        new = chance.choice([1, 1, 2, 3])
        tokens = torch.randint(37, (len(rows), new), generator=generator)
        logits = stepper.step(tokens[:, 0] if new == 1 else tokens)
        rows = [(prompt, torch.cat((old, more)), torch.cat((segment, torch.full_like(more, generated))))
                for (prompt, old, segment), more in zip(rows, tokens, strict=True)]
        found = logits[:, None] if new == 1 else logits
        worst = max(worst, far(found, [anew(*row)[-new:] for row in rows]))
    return worst


def record(model, what):
    """The list into which every kernel of the model will put what(inputs, output)."""
    found = []
    for block in model.layers:
        block.attention.kernel.register_forward_hook(lambda _, inputs, output: found.append(what(inputs, output)))
    return found


# RealFormer: a carry from layer to layer

def test_residual_scores_are_the_sum_of_all_raw_scores():
    model = tiny(residual_scores=True, layers=5)
    seen = record(model, lambda inputs, output: (inputs[0] @ inputs[1].mT / 10**0.5, output.carry))
    ids, segments = texts()
    batch = padded(ids, segments)
    maps = model(batch, attentions=True).attentions
    raw, carried = (torch.stack(column) for column in zip(*seen, strict=True))                      # [layers b h q k]
    assert float((raw.cumsum(0) - carried).abs().max()) < 1e-10
    expected = raw.cumsum(0).masked_fill(~batch.rows[0].keep[:, None, None], float("-inf")).softmax(-1)
    assert far(maps, list(expected)) < 1e-10
    short_memory = raw + torch.cat((torch.zeros_like(raw[:1]), raw[:-1]))                           # the planted fault: only one layer back
    assert float((short_memory - carried)[:2].abs().max()) < 1e-10 < float((short_memory - carried)[2].abs().max())


def test_residual_scores_without_queries_in_later_layers_repeat_the_first_map():
    model = tiny(residual_scores=True)
    for block in model.layers[1:]:
        block.attention.project.weight.data[:30] = 0
        block.attention.project.bias.data[:30] = 0
    first, second, third = model(texts()[0][0][None], attentions=True).attentions
    assert torch.equal(first, second) and torch.equal(first, third)


def test_residual_scores_in_one_layer_change_no_bit():
    plain, real = tiny(layers=1), tiny(layers=1, residual_scores=True)
    ids, segments = texts()
    one, other = (model(padded(ids, segments), attentions=True).logits for model in (plain, real))  # the explicit path, both
    assert torch.equal(one, other)


@pytest.mark.parametrize("mask", ["causal", "unilm"])
def test_residual_scores_cached_are_those_of_a_full_pass(mask):
    assert walk_tree(tiny(residual_scores=True, position="rotary", mask=mask)) < 1e-10


# T-TA: a stream of positions beside the tokens

def leak(model, place=4):
    """What a change of one token does to the logits there, and elsewhere at least."""
    ids = texts((11,))[0][0][None]
    other = ids.clone()
    other[0, place] = (ids[0, place] + 5) % 37
    one, two = model(ids).logits[0], model(other).logits[0]
    change = (one - two).abs().amax(-1)
    return float(change[place]), float(torch.cat((change[:place], change[place + 1:])).min())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_a_stream_of_positions_never_sees_its_own_token(layers, position):
    here, elsewhere = leak(tiny(layers=layers, stream="positions", mask=UNSEEN, position=position))
    assert here == 0 and elsewhere > 1e-6


def test_a_hidden_diagonal_alone_leaks_from_the_second_layer_on():
    assert leak(tiny(layers=2, mask=UNSEEN))[0] > 1e-3               # the naive way, which the check above must catch


def test_a_lone_token_gets_a_fixed_vector():
    model = tiny(stream="positions", mask=UNSEEN)
    padding = torch.tensor([[True] + [False] * 4])
    ids = torch.arange(37)[:, None]
    logits = model(ids).logits
    assert far(logits, logits[:1].expand_as(logits)) < 1e-10
    assert far(model(functional.pad(ids, (0, 4), value=3), padding=padding.expand(37, -1)).logits[:, :1], logits) < 1e-10


def test_a_stream_of_positions_scores_as_one_pass_a_position_does_and_in_any_order():
    model = tiny(stream="positions", mask=UNSEEN)
    ids, places, order = texts((11,))[0][0][None], torch.arange(11)[None], torch.randperm(11)
    once = model(ids).logits[0]
    each = torch.stack([model(torch.where(places == i, 0, ids)).logits[0, i] for i in range(11)])   # the token itself taken away
    assert far([once], [each]) < 1e-10
    assert far([model(ids[:, order], positions=places[:, order]).logits[0]], [once[order]]) < 1e-10


def test_a_stream_of_positions_is_the_same_however_it_is_laid():
    model = tiny(stream="positions", mask=UNSEEN)
    assert_same_however_laid(model)
    with pytest.raises(ConfigError, match="step by step"):
        model.new_cache()


# NEZHA: positions that read the scores and mix into the output

class Nezha(Position):
    def __init__(self, config, reach=4):
        super().__init__()
        self.reach = reach
        self.register_buffer("table", sinusoids(torch.arange(2 * reach + 1), config.width))

    def at(self, q_pos, k_pos, new_pos, dtype):
        return self.table[(k_pos[:, None] - q_pos[:, :, None]).clip(-self.reach, self.reach) + self.reach].to(dtype)    # [b q k d]

    def score(self, q, k, at):
        return q @ k.mT + torch.einsum("bhqd,bqkd->bhqk", q, at)

    def mix(self, weights, at):
        return torch.einsum("bhqk,bqkd->bhqd", weights, at)


def test_nezha_is_its_naive_loop():
    model = tiny(layers=1, position=Nezha)
    seen = record(model, lambda inputs, output: (*inputs[:3], output.out))
    model(texts((11,))[0][0][None])
    q, k, v, out = (value[0] for value in seen[0])                                                  # [h t d]
    table = sinusoids(torch.arange(9), 10)
    for head in range(3):
        for i in range(11):
            turned = [table[max(-4, min(4, j - i)) + 4] for j in range(11)]
            scores = torch.stack([q[head, i] @ (k[head, j] + turned[j]) / 10**0.5 for j in range(11)]).softmax(0)
            expected = sum(scores[j] * (v[head, j] + turned[j]) for j in range(11))
            assert float((out[head, i] - expected).abs().max()) < 1e-10


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_nezha_is_the_same_however_it_is_laid(mask):
    model = tiny(position=Nezha, mask=mask)
    assert model.position.hooks() == {"score", "mix"}
    assert_same_however_laid(model)


# Linear attention: a state of constant size in the place of keys

class State:
    """sums [p lanes h d d+1]: of phi(k) turned x v, and of phi(k) as it is."""

    def __init__(self):
        self.sums = None

    def select(self, lanes):
        self.sums = [one.flatten(0, 1)[lanes] for one in self.sums]

    def take(self, prompts):
        self.sums = [one[prompts] for one in self.sums]

    def compact(self, cells):
        pass


class Recurrent(Attention):
    honours = frozenset({"embed", "rotate"})
    clocks = frozenset({"causal"})

    def __init__(self, config):
        super().__init__()

    def forward(self, q, k, v, view, carry=None, memory=None, weights=False):
        q, k = functional.elu(q) + 1, (functional.elu(k) + 1) * view.k.keep[:, None, -k.shape[2]:, None]
        turned_q, turned_k = view.position.rotate(q, k, view.at)
        return Attended(self.mix(q, k, turned_q, turned_k, v, view, memory))

    def mix(self, q, k, turned_q, turned_k, v, view, memory):
        q, k, turned_q, turned_k, v = (x.unflatten(2, (view.lanes, -1)).transpose(1, 2) for x in (q, k, turned_q, turned_k, v))
        sums = [(turned_k[..., None] * v[..., None, :]).cumsum(3), k.cumsum(3)]                     # [p lanes h u d d], [p lanes h u d]
        if memory is not None:
            if memory.sums is not None:
                sums = [new + old[:, :, :, None] for new, old in zip(sums, memory.sums, strict=True)]
            memory.sums = [one[:, :, :, -1] for one in sums]
        out = (turned_q[..., None, :] @ sums[0])[..., 0, :] / (q * sums[1]).sum(-1, keepdim=True).clamp_min(1e-30)
        return out.transpose(1, 2).flatten(2, 3)

    def memory(self, room=None):
        return State()


class Quadratic(Recurrent):
    def mix(self, q, k, turned_q, turned_k, v, view, memory):
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        above, below = ((one @ other.mT).masked_fill(~seen, 0) for one, other in ((turned_q, turned_k), (q, k)))
        return above @ v / below.sum(-1, keepdim=True).clamp_min(1e-30)


@pytest.mark.parametrize("position", ["learned", "rotary", "none"])
def test_a_recurrent_kernel_is_its_quadratic_form_laid_and_cached_anyhow(position):
    options = {"position": position, "mask": "causal"}
    model, dense = tiny(attention=Recurrent, **options), tiny(attention=Quadratic, **options)
    ids, segments = texts()
    assert far(alone(model, ids, segments), alone(dense, ids, segments)) < 1e-10
    assert_same_however_laid(model)
    assert walk_tree(model) < 1e-10
    assert walk_tree(model, seed=1, left=True) < 1e-10


def test_a_recurrent_kernel_whose_state_stays_behind_is_caught(monkeypatch):
    monkeypatch.setattr(State, "select", lambda self, lanes: setattr(
        self, "sums", [one.flatten(0, 1)[lanes.sort().values] for one in self.sums]) if lanes.shape[1] == 1 else setattr(
        self, "sums", [one[:, :1].expand(-1, lanes.shape[1], *one.shape[2:]) for one in self.sums]))
    assert walk_tree(tiny(attention=Recurrent, position="none", mask="causal")) > 1e-3


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"position": Nezha}, ("Recurrent", "Nezha", "score")),
        ({"mask": {"name": "causal", "window": 3}}, ("Recurrent", "window")),
        ({"mask": "full"}, ("Recurrent", "full")),
        ({"residual_scores": True}, ("Recurrent", "residual_scores")),
    ],
)
def test_what_a_kernel_has_no_place_for_is_refused_by_name(changes, names):
    with pytest.raises(ConfigError) as caught:
        tiny(attention=Recurrent, **{"mask": "causal", "position": "none", **changes})
    assert all(name in str(caught.value) for name in names)


# Positions as a bias, in three lines

class Alibi(Position):
    def __init__(self, config):
        super().__init__()

    def bias(self, q_pos, k_pos):
        slopes = 2.0 ** -torch.arange(1, 4, device=q_pos.device)
        return -slopes[:, None, None] * (q_pos[:, None, :, None] - k_pos[:, None, None, :]).abs()   # [b h q k]


@pytest.mark.parametrize("mask", ["full", "causal", "unilm"])
def test_alibi_fused_and_explicit_is_its_formula_however_laid(mask):
    model = tiny(position=Alibi, mask=mask)
    seen = record(model, lambda inputs, output: inputs[0] @ inputs[1].mT / 10**0.5)
    ids, segments = texts((11,))[0][0][None], texts((11,))[1][0][None]
    hidden = record(model, lambda inputs, output: inputs[3].mask is not None)
    explicit = model(ids, segments=segments, attentions=True)
    assert hidden == [mask != "full"] * 3                            # a kernel may not take a bias and a triangle at once
    distance = (torch.arange(11)[:, None] - torch.arange(11)).abs()
    order = torch.arange(11) if mask == "causal" else segments[0].cumsum(0) if mask == "unilm" else torch.zeros(11)
    for scores, weights in zip(seen, explicit.attentions, strict=True):
        biased = scores - torch.tensor([0.5, 0.25, 0.125])[:, None, None] * distance
        assert float((biased.masked_fill(order > order[:, None], float("-inf")).softmax(-1) - weights).abs().max()) < 1e-10
    assert far([explicit.logits], [model(ids, segments=segments).logits]) < 1e-10
    assert_same_however_laid(model)


# Beams: a tree of rows that share their prompt's keys

@pytest.mark.parametrize(
    "changes",
    [
        {"position": "rotary"},
        {"position": "learned", "norm_at": "pre"},
        {"position": "learned", "mask": "unilm"},
        {"position": {"name": "rotary", "layout": "half"}, "mask": {"name": "causal", "window": 4}},
        {"position": "none", "mask": {"name": "unilm", "window": 5}},
        {"position": Nezha},
        {"position": Nezha, "mask": "unilm"},
        {"position": Alibi},
        {"position": "rotary", "attention_heads": 6, "key_value_heads": 2, "head_size": 4},         # grouped queries
        {"position": Nezha, "attention_heads": 6, "key_value_heads": 3, "head_size": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("left", [False, True])
def test_beams_that_share_a_prompt_are_rows_read_anew(changes, left):
    assert walk_tree(tiny(**{"mask": "causal", **changes}), seed=len(str(changes)), left=left) < 1e-10


class Stuck(Cache):
    """The planted fault: rows move, their lines don't."""

    def select(self, index):
        before = self.line
        super().select(index)
        if before is not None and before.shape == self.line.shape:
            self.line = before


def test_a_line_that_does_not_move_with_its_row_is_caught():
    model = tiny(mask="causal", position="rotary")
    faults = [walk_tree(model, seed=seed, cache=Stuck) for seed in range(5)]
    assert max(faults) > 1e-3


# An encoder beside a decoder

@pytest.mark.parametrize("changes", [{}, {"position": "rotary", "norm_at": "pre"}, {"residual_scores": True}], ids=str)
def test_a_decoder_that_reads_an_encoder_is_the_same_cached_and_beamed(changes):
    encoder = tiny(seed=3, hidden_size=19, head_size=6, heads=(), layers=2).config
    model = tiny(mask="causal", encoder=encoder, **changes)
    sources = texts((4, 9, 1, 6))[0]
    for left in (False, True):
        assert walk_tree(model, seed=5, left=left, sources=sources) < 1e-10


def test_an_encoder_is_trained_with_its_decoder():
    model = tiny(mask="causal", encoder=tiny(hidden_size=19, head_size=6, heads=(), layers=1).config).train().requires_grad_()
    with torch.enable_grad():
        model(torch.randint(37, (3, 5)), encoder_batch=Batch.padded(torch.randint(37, (3, 4)))).logits.logsumexp(-1).sum().backward()
    inner = [parameter for name, parameter in model.named_parameters() if name.startswith("encoder.layers.0.") and parameter.dim() > 1]
    assert inner and all(parameter.grad is not None and float(parameter.grad.abs().max()) > 0 for parameter in inner)


def test_a_decoder_reads_its_own_row_of_the_encoder_and_no_padding():
    decoder = tiny(mask="causal", encoder=tiny(seed=3, hidden_size=19, head_size=6, heads=()).config)
    cells, keep = pad(texts((4, 9))[0])
    ids = torch.randint(37, (2, 5))
    noise = torch.where(keep, cells, torch.randint(37, cells.shape))
    other = cells.clone()
    other[1, 2] = (other[1, 2] + 1) % 37

    def read(source):
        return decoder(ids, encoder_batch=Batch.padded(source, keep=keep)).logits

    assert torch.equal(read(cells), read(noise))
    assert torch.equal(read(cells)[0], read(other)[0]) and not torch.equal(read(cells)[1], read(other)[1])


def test_a_kernel_that_keeps_no_full_mask_reads_no_encoder():
    class Ahead(Softmax):
        clocks = frozenset({"causal"})

    with pytest.raises(ConfigError, match="can't take the mask 'full'"):
        tiny(mask="causal", attention=lambda config: Ahead(config.width), encoder=tiny(heads=()).config)


# A norm that reads a condition

@pytest.mark.parametrize("norm_at", ["post", "pre"])
def test_a_conditional_norm_reads_its_rows_condition_however_laid(norm_at):
    model = tiny(norm={"name": "conditional", "condition": 5}, norm_at=norm_at, mask="causal")
    for name, value in model.named_parameters():
        if ".scale." in name or ".shift." in name:
            torch.nn.init.normal_(value)                             # they start at zero
    ids = texts((5, 2, 7))[0]
    conditions = torch.randn(3, 5, dtype=torch.float64)
    one = [model(text[None], condition=told[None]).logits[0] for text, told in zip(ids, conditions, strict=True)]
    cells, keep = pad(ids)
    batch = Batch.padded(cells, keep=keep, condition=conditions)
    packed = Batch.packed(ids, condition=conditions)
    for found in (batch.unpack(model(batch).logits.flatten(0, 1)), packed.unpack(model(packed).logits)):
        assert max(float((a - b).abs().max()) for a, b in zip(one, found, strict=True)) < 1e-10
    swapped = model(Batch.packed(ids, condition=conditions.roll(1, 0))).logits                  # the planted fault: another's condition
    assert float((swapped - model(packed).logits).abs().max()) > 1e-3
    with pytest.raises(ConfigError, match="read a condition"):
        model(ids[0][None])
    cache = model.new_cache()
    prompts = Batch.padded(cells[:, :1], condition=conditions)
    model(prompts, cache=cache)
    cache.select(torch.tensor([0, 2, 2]))                            # the second leaves, the third has two rows
    steps = torch.stack([model(cells[[0, 2, 2], place], cache=cache).logits[:, 0] for place in range(1, 5)], dim=1)
    assert max(float((one[row][1:5] - step).abs().max()) for row, step in zip((0, 2, 2), steps, strict=True)) < 1e-10


# A switch of one's own

def test_a_part_of_ones_own_is_named_from_python_and_never_by_a_file(tmp_path, monkeypatch):
    (tmp_path / "own_part.py").write_text("from fishpaw.contracts import Position\ndef halve(config, *, by=2):\n"
                                          "    part = Position()\n    part.by = by\n    return part\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(position={"name": "own_part:halve", "by": 7}).config
    assert Transformer(config).position.by == 7
    values = {**tiny().config.to_dict(), "position": "own_part:halve"}
    for field, spec in {"position": "own_part:halve", "attention": {"name": "own_part:halve"}, "heads": ["os:system"]}.items():
        with pytest.raises(ConfigError, match=f"{field} names code"):
            ModelConfig.from_dict({**values, "position": "none", field: spec})
    with pytest.raises(ConfigError, match="position names code"):
        ModelConfig.from_json(f'{{"position": "own_part:halve", "vocab_size": {config.vocab_size}}}')


# Every part that there is; tests/test_grid.py has them in every combination

def assert_lawful(model):
    assert_same_however_laid(model)
    if model.mask.clock != "full":
        assert walk_tree(model, turns=5) < 1e-10


@pytest.mark.parametrize("position", switch.names("positions"))
def test_every_position_is_lawful(position):
    assert_lawful(tiny(position=position, mask="unilm"))             # full and causal: with every attention, below


@pytest.mark.parametrize("norm_at", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_every_norm_is_lawful(norm, norm_at):
    assert_lawful(tiny(norm=norm, norm_at=norm_at, mask="causal"))
