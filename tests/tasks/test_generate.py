"""Generate: prompts in, texts out, for byte-level BPE, a BERT that looks back only, and UniLM; streamed = whole."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishpaw.contracts import Batch
from fishpaw.decoding.constraints import Choices, Trie
from fishpaw.decoding.copying import CopyOnly
from fishpaw.decoding.limits import LONGEST, Limits
from fishpaw.decoding.processors import Temperature, TopK, TopP
from fishpaw.decoding.sample import sample, stream_sample
from fishpaw.decoding.search import beam, greedy, stream_greedy
from fishpaw.decoding.settings import Settings
from fishpaw.decoding.stops import StopStrings
from fishpaw.decoding.walk import Streamed
from fishpaw.errors import ConfigError, DataError
from fishpaw.model.transformer import Transformer
from fishpaw.tasks.generate import Generate, generator
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load, load_model
from fishpaw.weights.save import save

KINDS = {"gpt2": None, "bert": "causal", "roformer": "unilm"}


@pytest.fixture(params=KINDS)
def writer(pretrained, request):
    return Generate(*load(pretrained(request.param), mask=KINDS[request.param]))


def by_hand(writer: Generate, text: str, count: int) -> list[int]:
    """Greedy without a cache: the whole text through the model again for each token."""
    tokenizer, unilm = writer.tokenizer, writer.model.mask.clock == "unilm"
    encoding = tokenizer.encode(text)
    ids = encoding.ids if unilm or writer.model.config.family == "gpt2" else encoding.ids[:-1]
    made: list[int] = []
    while len(made) < count and (not made or made[-1] not in writer.ends):
        segments = torch.tensor([[0] * len(ids) + [1] * len(made)]) if writer.model.config.segments else None
        with torch.no_grad():
            logits = writer.model(torch.tensor([ids + made]), segments=segments if unilm else None).logits
        made.append(int(logits[0, -1].argmax()))
    return made


# Against direct calls

@pytest.mark.parametrize("text", ["今天", "好", "it's"])
def test_greedy_is_the_model_asked_token_by_token(writer, text):
    (found,) = greedy(writer.stepper, writer.encode([text], max_new=9), limits=writer.limits(9))
    expected = by_hand(writer, text, 9)
    assert list(found.tokens) == expected
    content = expected[:-1] if expected[-1] in writer.ends else expected
    assert writer.decode(found) == writer.tokenizer.decode(content)
    assert found.ended is (expected[-1] in writer.ends)


def test_a_batch_of_prompts_is_one_by_one(writer):
    texts = ["今天气", "好", "我们去公园玩吧", ""]
    together = greedy(writer.stepper, writer.encode(texts, max_new=7), limits=writer.limits(7))
    alone = [greedy(writer.stepper, writer.encode([text], max_new=7), limits=writer.limits(7))[0] for text in texts]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({one.tokens for one in alone}) > 1


def test_an_end_token_that_the_model_chooses_ends_the_text(writer):
    (end,) = writer.ends
    head = writer.model.embedding.tokens.weight
    with torch.no_grad():
        head[end] = head.mean(0) + 100 * (head[end] - head.mean(0))  # its logit is now the largest, or the smallest, by far
    lengths = set()
    for text in ("今天", "好", "坏", "我们", "了", "，"):
        (found,) = greedy(writer.stepper, writer.encode([text], max_new=5), limits=writer.limits(5))
        assert list(found.tokens) == by_hand(writer, text, 5)
        assert end not in found.content and found.closed is (found.tokens[-1] == end)
        (longer,) = greedy(writer.stepper, writer.encode([text], max_new=5), limits=writer.limits(5, 3))
        assert len(longer.tokens) >= 3
        lengths.add(len(found.tokens))
    assert lengths


def test_equal_seeds_give_equal_samples(writer):
    def draw(seed: int | None) -> list[str]:
        prompt = writer.encode(["今"], max_new=8)
        (answers,) = sample(writer.stepper, prompt, limits=writer.limits(8), n=3, processors=[Temperature(2.0)], generator=generator(seed))
        return [writer.decode(one) for one in answers]

    assert draw(1) == draw(1) != draw(2)
    assert generator(None) is None


def test_beams_come_best_first(writer):
    (found,) = beam(writer.stepper, writer.encode(["今"], max_new=6), beams=4, n=3, limits=writer.limits(6))
    assert len(found) == 3 and [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    (best,) = greedy(writer.stepper, writer.encode(["今"], max_new=6), limits=writer.limits(6))
    (narrow,) = beam(writer.stepper, writer.encode(["今"], max_new=6), beams=1, limits=writer.limits(6))
    assert narrow[0].tokens == best.tokens


# Streaming

def test_pieces_joined_are_the_whole_and_no_character_is_broken(writer):
    for seed in range(12):
        def draw(stream, seed=seed):
            prompt = writer.encode(["今天"], max_new=20)
            return stream(writer.stepper, prompt, limits=writer.limits(20), processors=[Temperature(3.0)], generator=generator(seed))

        ((whole,),) = draw(sample)
        pieces = list(writer.pieces(draw(stream_sample)))
        assert "".join(pieces) == writer.decode(whole) and all(pieces)
    prompt, limits = writer.encode(["今天"], max_new=20), writer.limits(20)
    (whole,) = greedy(writer.stepper, prompt, limits=limits)
    assert "".join(writer.pieces(stream_greedy(writer.stepper, prompt, limits=limits))) == writer.decode(whole)


def stream_of(ids: list[int], end: int | None) -> list[Streamed]:
    whole = [*ids, *([] if end is None else [end])]
    return [Streamed(0, 0, id, 0.0, at == len(whole) - 1, at == len(whole) - 1 and end is not None) for at, id in enumerate(whole)]


@pytest.mark.parametrize("text", ["今天好，👍🏽很好。", "é\u0301 ok", "\ufffd好\ufffd", "🤷", "a\ufffd", ""])
@pytest.mark.parametrize("ended", [True, False])
def test_bytes_are_held_back_until_their_character_is_whole(pretrained, text, ended):
    writer = Generate(*load(pretrained("gpt2")))
    ids = writer.tokenizer.encode(text).ids
    pieces = list(writer.pieces(iter(stream_of(ids, writer.ends[0] if ended else None))))
    assert "".join(pieces) == text
    assert all(len(piece.replace("\ufffd", "")) <= 1 for piece in pieces) or "\ufffd" in text
    cut = list(writer.pieces(iter(stream_of(ids[:-1], None))))
    assert "".join(cut) == writer.tokenizer.decode(ids[:-1])


@given(st.data())
def test_any_bytes_stream_as_they_decode(pretrained, data):
    if "bytes" not in WRITERS:
        WRITERS["bytes"] = Generate(*load(pretrained("gpt2")))
    writer = WRITERS["bytes"]
    ids = data.draw(st.lists(st.integers(0, writer.tokenizer.size - 1), max_size=12))
    assert "".join(writer.pieces(iter(stream_of(ids, None)))) == writer.tokenizer.decode(ids)


WORDS = ["don", "'", "t", "##al", '"', "s", "re", "今", "天", "##天", "it", "ll", "(", ")", ".", "3", ",", "-", "##'", "[UNK]", "[MASK]"]


def word_writer(pretrained) -> Generate:
    if "words" not in WRITERS:
        model, _ = load(pretrained("bert"), mask="causal")
        WRITERS["words"] = Generate(model, WordPiece(Vocab((*SPECIAL, *WORDS[:-2]))))
    return WRITERS["words"]


WRITERS: dict[str, Generate] = {}


@given(st.data())
def test_any_words_stream_as_they_decode(pretrained, data):
    """The blank beside a straight quote depends on the words after it: "don '" becomes "don't"."""
    writer = word_writer(pretrained)
    ids = [writer.tokenizer.vocab.id(word) for word in data.draw(st.lists(st.sampled_from(WORDS), max_size=14))]
    assert "".join(writer.pieces(iter(stream_of(ids, None)))) == writer.tokenizer.decode(ids)


def test_pieces_come_at_once_where_nothing_can_change_them(pretrained):
    writer = word_writer(pretrained)
    ids = [writer.tokenizer.vocab.id(word) for word in ["今", "天", "don", "'", "t", "今", "天"]]
    assert list(writer.pieces(iter(stream_of(ids, None)))) == ["今", "天", "don", "'t今", "天"]


# Batches, settings and stops in one call

TEXTS = ["今天气", "好", "我们去公园玩吧", "天", "今天气我们去", "不", "了是", "公园玩", "我"]
SETTINGS = [Settings(), Settings(beams=3, n=2, length_penalty=0.5), Settings(sample=True, n=3, temperature=1.5, top_k=20),
            Settings(repetition_penalty=1.4, no_repeat_ngram=2, frequency_penalty=0.5, presence_penalty=0.5, dry=0.8),
            Settings(contrastive_k=4),
            Settings(sample=True, temperature=1.2, top_k=25, top_p=0.95, min_p=0.02, typical=0.9, eta=1e-3)]  # fmt: skip


def named(settings: Settings) -> str:
    return ",".join(name for name, value in vars(settings).items() if value != vars(Settings())[name])


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_batches_give_the_answers_of_one_by_one_in_order(writer, settings):
    limits = writer.limits(9)
    alone = list(writer.answers(TEXTS, settings, limits, seed=5))
    assert len(alone) == len(TEXTS) and all(len(group) == settings.n for group in alone)
    for size in (2, 4, 50):
        assert [[one.hypothesis.tokens for one in group] for group in writer.answers(TEXTS, settings, limits, batch_size=size, seed=5)] \
            == [[one.hypothesis.tokens for one in group] for group in alone]
    if settings.beams == settings.n == 1:
        streamed = ["".join(writer.stream(text, settings, limits, seed=5, number=number)) for number, text in enumerate(TEXTS)]
        assert streamed == [group[0].text for group in alone]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("settings", [Settings(), Settings(beams=2, n=2), Settings(sample=True, n=2)], ids=named)
def test_what_each_prompt_has_of_its_own_reaches_it(writer, settings, size):
    """Above 1, TEXTS are answered in the order of their lengths; 27 of them are several windows."""
    texts, limits = TEXTS * 3, writer.limits(6)
    own = [writer.tokenizer.encode(text, special=False).ids for text in (*TEXTS[4:], *TEXTS, *TEXTS, *TEXTS[:4])]
    for constraint in (Choices([Trie([ids[:4]]) for ids in own], limits=limits), CopyOnly([ids[-3:] for ids in own], n=1, limits=limits)):
        for prompts in (texts, iter(texts)):
            found = list(writer.answers(prompts, settings, limits, constraints=[constraint], batch_size=size, seed=1))
            assert len(found) == len(texts)
            for ids, group in zip(own, found, strict=True):
                for one in group:
                    said = list(one.hypothesis.content)
                    assert one.hypothesis.closed
                    assert said == ids[:4] if isinstance(constraint, Choices) else {*said} <= {*ids[-3:]}
    if settings.n == 1:
        assert "".join(writer.stream(texts[5], settings, limits, constraints=[constraint], number=5)) == found[5][0].text


def test_a_constraint_for_another_number_of_prompts_is_refused(writer):
    limits = writer.limits(6)
    two = Choices([Trie([[7]]), Trie([[8]])], limits=limits)
    for prompts in (TEXTS[:1], TEXTS[:3]):
        with pytest.raises(ConfigError, match=rf"Choices\(2 tries\) is for 2 prompts, but there are {len(prompts)}"):
            next(writer.answers(prompts, Settings(), limits, constraints=[two]))
        with pytest.raises(ConfigError, match=rf"Choices\(2 tries\) is for 2 prompts, but there are {len(prompts)}"):
            list(writer.answers(iter(prompts), Settings(), limits, constraints=[two]))


def test_what_is_no_list_of_texts_is_refused(writer):
    with pytest.raises(DataError, match="no list of prompts"):
        list(writer.answers("今天", Settings(), writer.limits(3)))
    for wrong in (3, None, b"a"):
        with pytest.raises(DataError, match="not a string"):
            list(writer.answers([wrong], Settings(), writer.limits(3)))


def test_settings_are_the_searches_by_hand(writer):
    prompt, limits = writer.encode(["今天"], max_new=7), writer.limits(7)
    ((one,),) = writer.answers(["今天"], Settings(), limits)
    assert one.hypothesis == greedy(writer.stepper, prompt, limits=limits)[0] and one.text == writer.decode(one.hypothesis)
    (some,) = writer.answers(["今天"], Settings(beams=4, n=4), limits)
    assert [one.hypothesis for one in some] == beam(writer.stepper, prompt, beams=4, n=4, limits=limits)[0]
    (drawn,) = writer.answers(["今天"], Settings(sample=True, n=2, temperature=0.7, top_k=9), limits, seed=3)
    assert [one.hypothesis for one in drawn] == sample(writer.stepper, prompt, limits=limits, n=2, processors=[Temperature(0.7), TopK(9)],
                                                       generator=generator(3))[0]  # fmt: skip


def test_a_penalty_reads_a_prompt_that_is_continued_and_not_a_source(writer):
    (continues,) = [one for one in writer._processors(Settings(no_repeat_ngram=1), (), writer.limits(3))]
    batch = writer.encode(["今天"])
    continues.start(batch, 1)
    banned = (continues(torch.zeros(1, len(writer.model.table)), torch.zeros(1, 0, dtype=torch.long)) < 0).sum()
    assert int(banned) == (0 if writer.model.mask.clock == "unilm" else len({*batch.ids.tolist()}))


@pytest.mark.parametrize("size", [1, 3])
def test_answers_come_as_soon_as_those_before_them_and_an_error_behind_all(writer, size):
    read: list[int] = []

    def prompts():
        for number, text in enumerate(TEXTS[:5]):
            read.append(number)
            yield text
        raise DataError("The sixth is bad.", fix="Mend it.")

    stream = writer.answers(prompts(), Settings(), writer.limits(3), batch_size=size)
    found = [next(stream)]
    assert len(read) == (1 if size == 1 else 5)
    with pytest.raises(DataError, match="sixth"):
        for one in stream:
            found.append(one)
    assert len(found) == 5 and [one[0].hypothesis.tokens for one in found] \
        == [one[0].hypothesis.tokens for one in writer.answers(TEXTS[:5], Settings(), writer.limits(3))]


def test_why_an_answer_ended(writer):
    ((whole,),) = writer.answers(["今天"], Settings(), Limits(12))
    assert whole.why == "length" and not whole.hypothesis.ended
    word = whole.text[len(whole.text) // 2 :][:2]
    stops = [StopStrings(writer.tokenizer, ["not there", word])]
    ((one,),) = writer.answers(["今天"], Settings(), Limits(12), stops=stops)
    assert one.why == "stop" and one.text == whole.text[: whole.text.index(word)] and one.hypothesis.ended and not one.hypothesis.closed
    assert one.hypothesis.tokens == whole.hypothesis.tokens[: len(one.hypothesis.tokens)]
    assert "".join(writer.stream("今天", Settings(), Limits(12), stops=stops)) == one.text
    ((looped,),) = writer.answers(["今天"], Settings(), Limits(12), stops=[lambda tokens: torch.tensor([tokens.shape[1] == 4])])
    assert looped.why == "loop" and len(looped.hypothesis.tokens) == 4
    end = whole.hypothesis.tokens[5]
    ((ended,),) = writer.answers(["今天"], Settings(), Limits(12, ends=(end,)))
    assert ended.why == "end" and ended.figures["tokens"][-1] == end and end not in ended.hypothesis.content
    assert set(ended.figures) == {"text", "score", "ended", "why", "tokens", "log_probabilities"}


def test_an_end_of_the_models_own_is_an_end_and_its_bound_is_told(pipeline, tiny):
    tokenizer = pipeline("$A </s>")
    head = {"name": "lm", "ending": {"name": "self_terminating", "epsilon": 0.01, "end": 7}}
    model = Transformer(tiny(tokenizer.size, mask="causal", heads=(head,)))
    writer = Generate(model, tokenizer)
    assert writer.ends == (1, 7)
    assert "69 tokens" in str(writer.termination(Settings(), writer.limits(200)))
    assert writer.termination(Settings(contrastive_k=3), writer.limits(200)) is None
    with pytest.raises(ConfigError, match=r"ends with token 7, but ends is \(5,\)"):
        Generate(model, tokenizer, ends=(5,))
    plain = Generate(Transformer(tiny(tokenizer.size, mask="causal", heads=("lm",))), tokenizer)
    assert plain.termination(Settings(), plain.limits(9)) is None
    assert plain.termination(Settings(sample=True, top_k=3, consistent=True), plain.limits(9)) is not None


# Prompts and positions

@pytest.mark.parametrize("family", KINDS)
def test_long_prompts_lose_their_beginning_and_all_positions_are_used(pretrained, family):
    writer = Generate(*load(pretrained(family), mask=KINDS[family]))
    random_text = "".join(random.Random(3).choices("今天气我们去", k=90))
    limit = getattr(writer.model.position, "length", None)
    batch = writer.encode([random_text], max_new=8)
    if limit is None:
        assert len(batch.ids) == 92
        return
    assert len(batch.ids) == limit - 8
    whole = writer.tokenizer.encode(random_text).ids
    kept = batch.ids.tolist()
    assert kept == whole[-(limit - 8):] if family == "gpt2" else kept[0] == writer.tokenizer.cls_id and kept[1:] == whole[-(limit - 8):-1]
    (found,) = greedy(writer.stepper, batch, limits=Limits(max_new=8))
    assert len(found.tokens) == 8


def test_positions_that_are_not_there_are_refused_in_words(pretrained):
    gpt = Generate(*load(pretrained("gpt2")))
    for count in (53, 10**9):
        with pytest.raises(ConfigError, match=f"{count} new tokens, but the model has 53 positions"):
            gpt.encode(["今天"], max_new=count)
    assert len(gpt.encode(["今天"], max_new=52).ids) == 1
    bert = Generate(*load(pretrained("bert"), mask="causal"))
    assert bert.encode(["今天"], max_new=30).ids.tolist() == [bert.tokenizer.cls_id]
    unilm = Generate(*load(pretrained("bert"), mask="unilm"))
    assert unilm.encode(["今天"], max_new=29).ids.tolist() == [unilm.tokenizer.cls_id, unilm.tokenizer.sep_id]
    with pytest.raises(ConfigError, match="30 new tokens, but the model has 31 positions"):
        unilm.encode(["今天"], max_new=30)
    (found,) = greedy(unilm.stepper, unilm.encode(["今天"], max_new=29), limits=Limits(max_new=29))
    assert len(found.tokens) == 29


def test_prompts_begin_as_the_model_was_trained(pretrained):
    for family in KINDS:
        writer = Generate(*load(pretrained(family), mask=KINDS[family]))
        ids = writer.encode(["好"]).ids.tolist()
        tokens = [writer.tokenizer.tokens[id] for id in ids]
        assert tokens == {"gpt2": ["å¥½"], "bert": ["[CLS]", "好"], "roformer": ["[CLS]", "好", "[SEP]"]}[family]
        empty = writer.encode([""]).ids.tolist()
        assert empty == {"gpt2": [259], "bert": ids[:1], "roformer": [ids[0], ids[-1]]}[family]


# Any tokenizer, and a model that reads an encoder

@pytest.mark.parametrize(
    ("template", "prompt", "empty"),
    [("<s> $A </s>", ["<s>", "今", "天"], ["<s>"]), ("$A </s>", ["今", "天"], ["</s>"]), ("<s> $A", ["<s>", "今", "天"], ["<s>"]),
     ("<s> $A </s> </s>", ["<s>", "今", "天"], ["<s>"])],
)  # fmt: skip
def test_what_a_tokenizer_adds_behind_a_text_is_no_part_of_a_prompt(pipeline, tiny, template, prompt, empty):
    tokenizer = pipeline(template)
    writer = Generate(Transformer(tiny(tokenizer.size, position="learned", max_positions=9, mask="causal", heads=("lm",))), tokenizer)
    assert [tokenizer.tokens[id] for id in writer.encode(["今天"]).ids] == prompt and writer.ends == (1,)
    assert [tokenizer.tokens[id] for id in writer.encode([""]).ids] == empty
    long = writer.encode(["今天气我们去公园玩吧"], max_new=4).ids.tolist()
    assert len(long) == 5 and tokenizer.decode(long).endswith("公园玩吧")
    assert [tokenizer.tokens[id] for id in writer.encode(["<s>今天</s>"], special=False).ids] == ["<s>", "今", "天", "</s>"]
    written = writer.encode(["今</s>"]).ids.tolist()                  # one that stands in the text stays
    assert tokenizer.tokens[written[-1]] == "</s>" and tokenizer.tokens[written[-2]] == "今"


def test_answers_may_end_at_another_token(pipeline, tiny):
    tokenizer = pipeline("$A")
    line = tokenizer.tokens.index("，")                               # as CPM's line_id
    writer = Generate(Transformer(tiny(tokenizer.size, mask="causal", heads=("lm",))), tokenizer, ends=(line,))
    assert writer.limits(5).ends == (line,)
    assert list(writer.pieces(iter(stream_of(tokenizer.encode("今天").ids, line)))) == ["今", "天"]
    assert list(writer.pieces(iter(stream_of(tokenizer.encode("今</s>天").ids, line)))) == ["今", "天"]


@pytest.mark.parametrize("pad", [0, 3])
def test_an_encoder_reads_the_text_and_the_answer_begins_with_padding(pipeline, tiny, pad):
    tokenizer = pipeline("$A </s>")
    shape = tiny(tokenizer.size, position="none", norm_at="pre", segments=0, embedding_norm=False, init_std=0.6, pad_id=pad)
    model = Transformer(shape.change({"mask": "causal", "heads": ("lm",), "encoder": shape.change({"mask": "full"}),
                                      "shared_embedding": True})).eval()
    writer = Generate(model, tokenizer)
    texts = ["今天气", "好", "我们去公园玩吧", ""]
    read = writer.encode(texts, max_new=6)
    assert read.shape == (4, 8) and [row.tolist() for row in read.unpack(read.ids)] == [one.ids for one in tokenizer.encode_batch(texts)]
    answers = greedy(writer.stepper, read, limits=writer.limits(6))
    for text, found in zip(texts, answers, strict=True):
        made = [pad]
        while len(made) < 7 and (len(made) == 1 or made[-1] not in writer.ends):
            with torch.no_grad():
                source = Batch.padded(torch.tensor([tokenizer.encode(text).ids]))
                made.append(int(model(torch.tensor([made]), encoder_batch=source).logits[0, -1].argmax()))
        assert list(found.tokens) == made[1:]
    assert len({one.tokens for one in answers}) > 1
    limits = writer.limits(6)
    (beams,) = beam(writer.stepper, writer.encode(["今天气"]), beams=3, n=2, limits=limits)
    assert beams[0].score >= answers[0].score
    assert "".join(writer.pieces(stream_greedy(writer.stepper, writer.encode(["好"]), limits=limits))) == writer.decode(answers[1])


def test_an_encoders_text_loses_its_beginning_where_its_positions_end(pipeline, tiny):
    tokenizer = pipeline("$A </s>")
    shape = tiny(tokenizer.size, position="learned", max_positions=5)
    writer = Generate(Transformer(shape.change({"mask": "causal", "heads": ("lm",), "encoder": shape.change({"mask": "full"})})), tokenizer)
    assert tokenizer.decode(writer.encode(["今天气我们去"], max_new=4).ids.tolist()) == "气我们去"
    with pytest.raises(ConfigError, match="5 new tokens, but the model has 5 positions"):
        writer.encode(["今"], max_new=5)


@pytest.mark.parity
@pytest.mark.parametrize(("gated", "start"), [(False, 0), (True, 0), (True, 3)])
def test_t5_answers_as_in_transformers(pipeline, tmp_path, gated, start):
    transformers = pytest.importorskip("transformers")
    tokenizer = pipeline("$A </s>")
    torch.manual_seed(11)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=tokenizer.size, d_model=12, d_kv=6, d_ff=20, num_layers=2, num_heads=2, decoder_start_token_id=start, dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=7, feed_forward_proj="gated-gelu" if gated else "relu",
    )).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.6) if parameter.dim() > 1 else parameter
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    save(load_model(tmp_path), tmp_path / "again", tokenizer)
    writer = Generate(*load(tmp_path / "again"))
    texts = ["今天气", "好", "我们去公园玩吧", ""]
    found = greedy(writer.stepper, writer.encode(texts), limits=writer.limits(9))
    for text, one in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer.encode(text).ids])
        wanted = theirs.generate(ids, max_new_tokens=9, do_sample=False, num_beams=1)[0, 1:].tolist()
        assert list(one.tokens) == wanted
    assert len({one.tokens for one in found}) > 1


# Mistakes, a sentence each (a field out of range never starts a search)

@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda task: task.encode([]), DataError, "no list of prompts"),
        (lambda task: task.encode("今天"), DataError, "no list of prompts"),
        (lambda task: task.encode([3]), DataError, "not a string"),
        (lambda task: task.encode(["今"], max_new=-1), ConfigError, "max_new is -1"),
        (lambda task: task.limits(0), ConfigError, "max_new is 0"),
        (lambda task: task.limits(10**9), ConfigError, f"max_new is 1000000000; allowed: a whole number, 1 to {LONGEST}"),
        (lambda task: task.limits(3, 4), ConfigError, "min_new is 4"),
        (lambda task: Temperature(0), ConfigError, "temperature is 0"),
        (lambda task: Temperature(-1.0), ConfigError, "temperature is -1"),
        (lambda task: Temperature(math.nan), ConfigError, "temperature is nan"),
        (lambda task: TopP(0.0), ConfigError, "top_p is 0"),
        (lambda task: TopP(1.5), ConfigError, "top_p is 1.5"),
        (lambda task: TopK(0), ConfigError, "top_k is 0"),
        (lambda task: generator(-1), ConfigError, "seed is -1"),
        (lambda task: generator(2**64), ConfigError, "seed is"),
    ],
)
def test_a_call_that_cannot_be_is_refused(pretrained, call, kind, says):
    with pytest.raises(kind, match=says) as caught:
        call(Generate(*load(pretrained("gpt2"))))
    assert "\n" not in str(caught.value)


def test_top_k_beyond_the_vocabulary_is_refused(writer):
    with pytest.raises(ConfigError, match="top_k is 1000000000, but there are"):
        sample(writer.stepper, writer.encode(["今"], max_new=5), limits=writer.limits(5), processors=[TopK(10**9)])


def test_models_that_cannot_decode_are_refused(pretrained):
    with pytest.raises(ConfigError, match='mask="causal"'):
        Generate(*load(pretrained("bert")))
    with pytest.raises(ConfigError, match="no head that scores tokens"):
        Generate(*load(pretrained("bert"), mask="causal", heads=("pooler",)))


def test_an_id_beyond_the_vocabulary_is_refused_not_an_index_error(pretrained):
    writer = word_writer(pretrained)
    with pytest.raises(DataError, match="outside the vocabulary"):
        list(writer.pieces(iter(stream_of([writer.tokenizer.size], None))))


# What a checkpoint says of its end, and what a prompt lost

@pytest.mark.parametrize(("named", "ends"), [(None, (1,)), (7, (1, 7)), ([7, 1, 9], (1, 7, 9))], ids=str)
def test_answers_end_where_the_checkpoint_says_too(pipeline, tiny, named, ends):
    tokenizer = pipeline("$A </s>")
    model = Transformer(tiny(tokenizer.size, mask="causal", heads=("lm",)))
    model.generation = {"eos_token_id": named}
    assert Generate(model, tokenizer).ends == Generate(model, tokenizer).limits(3).ends == ends
    assert Generate(model, tokenizer, ends=(5,)).ends == (5,)


def test_ends_are_read_from_the_folder(pretrained, tmp_path):
    model, tokenizer = load(pretrained("gpt2"))
    save(model, tmp_path / "model", tokenizer)
    before = {*Generate(model, tokenizer).ends}
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [3, 5]}', encoding="utf-8")
    assert {*Generate(*load(tmp_path / "model", verify=False)).ends} == {3, 5, tokenizer.eos_id} >= before
    end = model.table
    model.generation = {"eos_token_id": 3}
    with torch.no_grad():
        end[3] = end.mean(0) + 100 * (end[3] - end.mean(0))
    writer = Generate(model.eval(), tokenizer)
    found = [greedy(writer.stepper, writer.encode([text], max_new=9), limits=writer.limits(9))[0] for text in ("今天", "好", "我们", "a")]
    assert any(one.tokens[-1] == 3 and one.ended for one in found) and all(3 not in one.content for one in found)


def test_prompts_that_were_cut_are_counted(pretrained):
    gpt = Generate(*load(pretrained("gpt2")))
    gpt.encode(["a" * 45, "b" * 46, "c", "d" * 99], max_new=8)
    assert gpt.cut == 2
    gpt.encode(["a" * 90], max_new=8)
    assert gpt.cut == 3
    rotary = Generate(*load(pretrained("roformer"), mask="unilm"))
    rotary.encode(["今" * 900], max_new=8)
    assert rotary.cut == 0
