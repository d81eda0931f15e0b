"""The engine as a whole: a search over cached steps finds what the same search finds when every row is read anew, in every family that
decodes; and on T5 it finds what transformers finds. Rows are moved, fan out and leave, stored keys are forgotten every third step.

fp64; the same tokens, log-probabilities to 1e-9: only the order of sums differs. Parity for GPT-2: test_search.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fishpaw import switch
from fishpaw.config import ModelConfig
from fishpaw.contracts import Batch
from fishpaw.decoding import search, walk
from fishpaw.decoding.limits import Limits
from fishpaw.decoding.processors import Temperature
from fishpaw.decoding.sample import sample
from fishpaw.decoding.search import beam, full, greedy, unbeatable, unpromising
from fishpaw.decoding.stepper import TransformerStepper
from fishpaw.errors import ConfigError
from fishpaw.model.transformer import Transformer
from fishpaw.weights.load import load_model

torch.set_num_threads(1)
SIZE = 13
PROMPTS = [(3, 1, 4, 8), (7,), (5, 9, 2)]
LIMITS = Limits(8, ends=(1,))
OPTIONS = {
    "performer": {"features": 11}, "sparse": {"k": 3}, "hierarchical": {"alpha": 0.4}, "nezha": {"reach": 3}, "rerope": {"window": 3},
    "leaky_rerope": {"window": 3, "stretch": 2.0}, "buckets": {"buckets": 6, "distance": 9},
    "rotary_yarn": {"factor": 4.0, "original_length": 8}, "rotary_llama3": {"factor": 4.0, "original_length": 8, "theta": 100.0},
}  # fmt: skip


def spec(name: str) -> dict:
    return {"name": name, **OPTIONS.get(name, {})}


def model_of(**changes) -> Transformer:
    torch.manual_seed(1)
    shape = {"vocab_size": SIZE, "hidden_size": 10, "layers": 2, "attention_heads": 3, "head_size": 4, "intermediate_size": 17,
             "max_positions": 5 if "hierarchical" in str(changes) else 17, "init_std": 0.6, "heads": ("lm",), "mask": "causal",
             "tie_embeddings": False}
    return Transformer(ModelConfig(**{**shape, **changes})).double().eval().requires_grad_(False)


def families() -> dict[str, dict]:
    """A family for every attention and both clocks, every position, and what goes from layer to layer or differs between them."""
    found = {}
    for attention in switch.names("attention"):
        for clock in ("causal", "unilm"):
            changes = {"attention": spec(attention), "mask": clock, "position": "rotary"}
            try:
                TransformerStepper(model_of(**changes))
            except ConfigError:                                  # what can't decode; tests/test_grid.py knows which
                continue
            found[f"{attention} {clock}"] = changes
    for position in switch.names("positions"):
        found[position] = {"position": spec(position)}
    encoder = {"vocab_size": SIZE, "hidden_size": 11, "layers": 1, "attention_heads": 2, "head_size": 4, "intermediate_size": 7,
               "init_std": 0.6, "position": spec("buckets")}
    return found | {
        "nezha unilm": {"position": spec("nezha"), "mask": "unilm"},
        "window": {"position": "rotary", "mask": {"name": "causal", "window": 3}},
        "realformer": {"residual_scores": True, "position": "learned"},
        "realformer nezha": {"residual_scores": True, "position": spec("nezha"), "layers": 3},
        "gau": {"block": "gau", "attention_heads": 1, "position": "rotary", "norm_at": "pre"},
        "grouped": {"attention_heads": 4, "key_value_heads": 2, "position": "rotary", "norm": "rms", "norm_at": "pre", "qk_norm": True},
        "albert": {"layers": 4, "distinct_layers": 2, "position": "learned"},
        "attentions in turn": {"attention": ["linear", "softmax"], "position": "rotary", "layers": 3},
        "masks in turn": {"mask": ["causal", {"name": "causal", "window": 3}], "position": ["rotary", "none"], "layers": 3},
        "all in turn": {"attention": ["linear", "softmax", spec("sparse")], "position": ["rotary", "rotary", spec("nezha")],
                        "mask": ["unilm", {"name": "unilm", "window": 4}, "unilm"], "layers": 3},
        "encoder": {"encoder": ModelConfig(**encoder), "position": spec("buckets"), "norm": "rms", "norm_at": "pre"},
        "encoder, linear": {"encoder": ModelConfig(**encoder), "attention": ["linear", "softmax"], "position": "rotary"},
    }


FAMILIES = families()


class Anew:
    """Reads every row anew for every step, together with those of its prompt only: no cache, no padding."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def logits(self) -> Tensor:
        return torch.cat([self.read(prompt, [row for _, row in rows]) for prompt, rows in itertools.groupby(self.rows, lambda row: row[0])])

    def read(self, prompt: tuple[int, ...], rows: list[tuple[int, ...]]) -> Tensor:
        given = {}
        if self.model.encoder is not None:                       # the encoder reads the prompt, the answer begins with token 3
            given, prompt = {"encoder_batch": Batch.padded(torch.tensor([prompt] * len(rows)))}, (3,)
        ids = torch.tensor([prompt + row for row in rows])
        segments = (torch.arange(ids.shape[1]) >= len(prompt)).long().expand(ids.shape) if self.model.mask.clock == "unilm" else None
        return self.model(ids, segments=segments, **given).logits[:, -1]

    def start(self, prompts, encoder_batch=None) -> Tensor:
        self.rows = [(prompt, ()) for prompt in prompts]
        return self.logits()

    def step(self, tokens: Tensor) -> Tensor:
        self.rows = [(prompt, (*row, token)) for (prompt, row), token in zip(self.rows, tokens.tolist(), strict=True)]
        return self.logits()

    def select(self, index: Tensor) -> None:
        self.rows = [self.rows[place] for place in index.tolist()]

    def compact(self) -> None:
        pass


def laid(prompts=PROMPTS) -> Batch:
    """Padded on the left."""
    width = max(map(len, prompts))
    keep = torch.tensor([[place >= width - len(one) for place in range(width)] for one in prompts])
    return Batch.padded(torch.tensor([[0] * (width - len(one)) + list(one) for one in prompts]), keep=keep)


def cached(model: Transformer, kind=TransformerStepper):
    return kind(model, start_id=None if model.encoder is None else 3)


def fifth(tokens: Tensor) -> Tensor:
    """A stop that ends about every fifth row at any step, so that rows leave one after another."""
    return (tokens.sum(1) + tokens.shape[1] ** 2) % 5 == 0


def searched(stepper, prompts) -> list:
    """Greedy, by beams and sampled: one flat list."""
    settings = {"limits": LIMITS, "stops": [fifth]}
    with torch.no_grad():
        found = greedy(stepper, prompts, **settings) + sum(beam(stepper, prompts, beams=4, n=4, length_penalty=1.0, **settings), [])
        chance = torch.Generator().manual_seed(5)
        return found + sum(sample(stepper, prompts, n=3, processors=[Temperature(3.0)], generator=chance, **settings), [])


def check(found, expected) -> None:
    assert [(one.prompt, one.tokens, one.ended) for one in found] == [(one.prompt, one.tokens, one.ended) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-9)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    for module in (search, walk):
        monkeypatch.setattr(module, "COMPACT_EVERY", 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_over_cached_steps_is_one_that_reads_everything_anew(family):
    model = model_of(**FAMILIES[family])
    expected = searched(Anew(model), PROMPTS)
    check(searched(cached(model), laid()), expected)
    assert len({len(one.tokens) for one in expected}) > 2, "rows should leave at different steps"


def test_every_attention_and_position_that_decodes_is_here():
    for attention in switch.names("attention"):
        assert any(str(attention) == name.split()[0] for name in FAMILIES) or _looks_ahead(attention)
    assert set(switch.names("positions")) <= set(FAMILIES)


def _looks_ahead(attention: str) -> bool:
    try:
        model_of(attention=spec(attention))
    except ConfigError:
        return True
    return False


class Stays(TransformerStepper):
    """Planted fault: keys and states stay while the beams move."""

    def select(self, index):
        super().select(index if len(index) != len(self.cache.owner) else torch.arange(len(index)))


class Forgets(TransformerStepper):
    """Planted fault: compacting drops a key that is still read."""

    def compact(self):
        super().compact()
        self.cache.keys.keep[:, 0] = False
        self.cache.dense = False


SOFTMAX = ("softmax causal", "nezha", "masks in turn")
FAULTS = [*((family, fault) for family in SOFTMAX for fault in (Stays, Forgets)), ("encoder", Stays), ("linear causal", Stays),
          ("attentions in turn", Stays)]  # fmt: skip


@pytest.mark.parametrize(("family", "fault"), FAULTS)
def test_faults_are_caught(family, fault):
    model = model_of(**FAMILIES[family])
    with pytest.raises(AssertionError):
        check(searched(cached(model, fault), laid()), searched(Anew(model), PROMPTS))


# T5, against transformers

@pytest.fixture(scope="module", params=[0, 3], ids=lambda seed: f"seed{seed}")
def t5(request, tmp_path_factory):
    """A random T5 of transformers in fp64, and ours from its folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(request.param)
    config = transformers.T5Config(vocab_size=SIZE, d_model=14, d_kv=5, d_ff=17, num_layers=2, num_heads=3, decoder_start_token_id=0,
                                   relative_attention_num_buckets=8, relative_attention_max_distance=7, dropout_rate=0.0)
    theirs = transformers.T5ForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
    folder = tmp_path_factory.mktemp("t5")
    theirs.save_pretrained(folder)
    return theirs, load_model(folder, dtype=torch.float64)


def of_transformers(theirs, **settings) -> list[tuple[int, ...]]:
    """Its answers, without the start token, cut behind the first end token."""
    from transformers import GenerationConfig

    batch = laid()
    config = GenerationConfig(do_sample=False, max_new_tokens=10, eos_token_id=[1, 5], pad_token_id=0, decoder_start_token_id=0, **settings)
    with torch.no_grad():
        rows = theirs.generate(batch.restore(batch.ids), attention_mask=batch.rows[0].keep.long(), generation_config=config)[:, 1:].tolist()
    return [tuple(row[: next((place + 1 for place, token in enumerate(row) if token in (1, 5)), len(row))]) for row in rows]


ENDS = Limits(10, ends=(1, 5))


@pytest.mark.parity
def test_greedy_search_on_t5_is_that_of_transformers(t5):
    theirs, ours = t5
    assert [one.tokens for one in greedy(TransformerStepper(ours, start_id=0), laid(), limits=ENDS)] == of_transformers(theirs)


@pytest.mark.parity
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize(("until", "stopping"), [(unbeatable, "never"), (unpromising, False), (full, True)], ids=["never", "false", "true"])
def test_beams_on_t5_are_those_of_transformers(t5, penalty, beams, until, stopping):
    theirs, ours = t5
    stepper = TransformerStepper(ours, start_id=0)
    groups = beam(stepper, laid(), beams=beams, n=beams, limits=ENDS, length_penalty=penalty, until=until)
    settings = {"num_beams": beams, "num_return_sequences": beams, "length_penalty": penalty, "early_stopping": stopping}
    assert [one.tokens for group in groups for one in group] == of_transformers(theirs, **settings)


@pytest.mark.parity
def test_parity_on_t5_is_not_blind(t5):
    """Answers end by an end token and by the limit, penalties matter, and beams that stay behind are noticed."""
    theirs, ours = t5
    settings = {"beams": 5, "n": 5, "limits": ENDS}
    runs = [beam(TransformerStepper(ours, start_id=0), laid(), length_penalty=penalty, **settings) for penalty in (0.0, 2.0)]
    found = [one for groups in runs for group in groups for one in group]
    assert any(one.ended for one in found) and any(not one.ended for one in found) and runs[0] != runs[1]
    wrong = beam(Stays(ours, start_id=0), laid(), length_penalty=1.0, until=unbeatable, **settings)
    expected = of_transformers(theirs, num_beams=5, num_return_sequences=5, length_penalty=1.0, early_stopping="never")
    assert [one.tokens for group in wrong for one in group] != expected
