"""SentencePiece with four families' conventions: ids of transformers', offsets that find the text again. The models are trained here."""

from __future__ import annotations

import io
import json
import pickle
import unicodedata

import pytest

from fishpaw.errors import CheckpointError, ConfigError, DataError
from fishpaw.text.load import load_tokenizer
from fishpaw.text.sentencepiece import SentencePiece

spm = pytest.importorskip("sentencepiece")
LINES = [
    "今天天气非常好，我们去公园散步。",
    "Hello world, the weather is fine today",
    "the unaffable sea 2,020 and 11,20",
    "ab 1 2 3 é ü",
    "中文 English 混合",
]
HARD = [
    "",
    " ",
    "  a  ",
    "今天 天气",
    "Ｈｅｌｌｏ１２３ ㍿ ½ ",
    "x\ty\nz",
    "a\0b",
    "a\ud800b",
    "é e\u0301",
    "\U0001f41f𠮷",
    "``quote''",
    "Straße ﬁne",
    "<s> </s>x",
]
NAMES = {"t5": "T5Tokenizer", "albert": "AlbertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
FILES = {"t5": "spiece.model", "albert": "spiece.model", "xlm-roberta": "sentencepiece.bpe.model", "llama": "tokenizer.model"}


def train(**options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 20),
        model_writer=model,
        character_coverage=1.0,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **options,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def models():
    return {
        "t5": train(vocab_size=211, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
        "albert": train(vocab_size=211, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]"),
        "xlm-roberta": train(vocab_size=211),
        "llama": train(vocab_size=499, model_type="bpe", byte_fallback=True, normalization_rule_name="identity"),
    }


@pytest.fixture(params=["t5", "albert", "xlm-roberta", "llama"])
def tokenizer(request, models):
    return SentencePiece(models[request.param], request.param, **({"lower": True, "accents": False} if request.param == "albert" else {}))


def folder_of(tmp_path, models, layout, **config):
    (tmp_path / FILES[layout]).write_bytes(models[layout])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": NAMES[layout], **config}), encoding="utf-8")
    return tmp_path


@pytest.mark.parity
@pytest.mark.parametrize(
    ("layout", "config"),
    [
        ("t5", {}),
        ("t5", {"extra_ids": 7}),
        ("xlm-roberta", {}),
        ("albert", {}),
        ("albert", {"do_lower_case": False, "keep_accents": True}),
    ],
)
def test_ids_are_those_of_transformers(layout, config, models, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, NAMES[layout]).from_pretrained(folder_of(tmp_path, models, layout, **config))
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, SentencePiece) and ours.size == len(theirs)
    special = {"t5": "<extra_id_0>", "albert": "[MASK]", "xlm-roberta": "<mask>"}[layout]
    texts = [*LINES[:2], *LINES[3:], "今天 天气", "Ｈｅｌｌｏ ½", "  a  b ", "", f"the {special} sea", "x\ty\nz", "ÉCOLE Hello"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        pair = theirs(text, "the sea", return_token_type_ids=True)
        both = ours.encode(text, "the sea")
        assert both.ids == pair["input_ids"] and both.segments == pair["token_type_ids"]
        assert ours.encode(text, special=False).ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.pad_id == theirs.pad_token_id and ours.eos_id == theirs.eos_token_id and ours.unk_id == theirs.unk_token_id
    fault = SentencePiece(models["t5"], "t5", extra=["<x>"])  # the planted fault: another model's
    assert layout == "t5" or any(fault.encode(text).ids != theirs(text)["input_ids"] for text in texts)


def test_offsets_find_the_text(tokenizer):
    for text in [*LINES, *HARD]:
        found = tokenizer.encode(text, special=False)
        assert all(0 <= start <= end <= len(text) for start, end in found.offsets)
        assert found.offsets == sorted(found.offsets) and len(found.ids) == len(found.tokens) == len(found.segments) == len(found.offsets)
        covered = {index for start, end in found.offsets for index in range(start, end)}
        kept = {index for index, char in enumerate(text) if not char.isspace() and unicodedata.category(char) not in ("Cc", "Cs", "Mn")}
        assert kept <= covered
    for id, token, span in zip(*[getattr(tokenizer.encode("today fine"), part) for part in ("ids", "tokens", "offsets")], strict=True):
        if id not in tokenizer.special_ids and token.strip("\u2581"):
            assert "today fine"[slice(*span)] == token.strip("\u2581")


def test_a_character_of_several_pieces_is_in_each(models):
    found = SentencePiece(models["t5"], "t5").encode("½", special=False)
    assert len(found.ids) > 1 and all(span == (0, 1) for token, span in zip(found.tokens, found.offsets, strict=True) if token != "\u2581")
    bytes_of = SentencePiece(models["llama"], "llama").encode("鱼", special=False)
    assert [token for token in bytes_of.tokens if token.startswith("<0x")] == ["<0xE9>", "<0xB1>", "<0xBC>"]
    assert {span for token, span in zip(bytes_of.tokens, bytes_of.offsets, strict=True) if token.startswith("<0x")} == {(0, 1)}


def test_truncation_and_empty_texts_are_the_sisters(tokenizer):
    added = len(tokenizer.encode(""))
    assert added == {"t5": 1, "llama": 1}.get(tokenizer.layout, 2) and tokenizer.encode("", special=False).ids == []
    whole, inner = tokenizer.encode(LINES[1]), tokenizer.encode(LINES[1], special=False)
    short, left = (tokenizer.encode(LINES[1], max_length=7, truncate=side) for side in ("right", "left"))
    assert len(short) == len(left) == 7 and set(left.offsets) & {inner.offsets[-1]}
    assert [id for id in short.ids if id not in tokenizer.special_ids] == inner.ids[: 7 - added]
    assert len(tokenizer.encode(LINES[0], LINES[1], max_length=11)) == 11 and whole.ids == tokenizer.encode_batch([LINES[1]])[0].ids
    with pytest.raises(ConfigError, match="no room"):
        tokenizer.encode("a", "b", max_length=0)
    with pytest.raises(DataError, match="one string"):
        tokenizer.encode_batch("ab")


def test_texts_come_back(tokenizer):
    for text in (LINES[0].replace("，", ","), "the weather is fine"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFKC", text)
    ids = tokenizer.encode("the sea").ids
    assert tokenizer.decode(ids, skip_special=False).replace(" ", "") != tokenizer.decode(ids).replace(" ", "")
    for id in (-1, tokenizer.size):
        with pytest.raises(DataError, match="outside"):
            tokenizer.decode([id])


def test_albert_sets_the_comma_after_a_number_apart(models):
    """Google's tokenization.py: '2,0' of one piece '2,' is '2' and ','."""
    model = train(vocab_size=211, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]", user_defined_symbols="2,")
    found = SentencePiece(model, "albert").encode("12,020", special=False)
    assert "2," not in found.tokens and "," in found.tokens and found.offsets[found.tokens.index(",")] == (2, 3)


def test_a_saved_one_comes_back(tokenizer, tmp_path):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode_batch(HARD) == tokenizer.encode_batch(HARD)
    tokenizer.save(tmp_path)
    assert (tmp_path / "spiece.model").read_bytes() == tokenizer.model


@pytest.mark.parametrize("layout", ["t5", "albert", "xlm-roberta", "llama"])
def test_config_json_names_the_family_and_saving_keeps_it(layout, models, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / FILES[layout]).write_bytes(models[layout])
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": layout}), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path / "a")
    assert tokenizer.layout == layout
    tokenizer.save(tmp_path / "b")
    again = load_tokenizer(tmp_path / "b")  # without config.json
    assert again.encode_batch(HARD) == tokenizer.encode_batch(HARD) and again.size == tokenizer.size
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="nothing says"):
        load_tokenizer(tmp_path / "a")


def test_sentinels_are_as_many_as_the_family_has(models, tmp_path):
    (tmp_path / "spiece.model").write_bytes(models["t5"])
    for kind, count in (("t5", 100), ("mt5", 0)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.size == len(spm.SentencePieceProcessor(model_proto=models["t5"])) + count
        assert count == 0 or tokenizer.tokens[-1] == "<extra_id_0>" and tokenizer.encode("<extra_id_0>").ids[0] == tokenizer.size - 1


@pytest.mark.parametrize("content", [b"", b"junk", b"\0" * 99, None])
def test_a_broken_model_is_named(content, models, tmp_path):
    folder_of(tmp_path, models, "t5")
    (tmp_path / "spiece.model").write_bytes(models["t5"][:999] if content is None else content)
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        load_tokenizer(tmp_path)


def test_what_does_not_fit_is_refused(models, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"no \[CLS\], \[SEP\]"):
        SentencePiece(models["t5"], "albert")
    with pytest.raises(ConfigError, match="layout='bert'"):
        SentencePiece(models["t5"], "bert")
    folder_of(tmp_path, models, "t5", added_tokens_decoder={"3": {"content": "<new>"}})
    with pytest.raises(CheckpointError, match="'<new>' has id 3"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match="fishpaw\\[spm\\]"):
        SentencePiece(models["t5"], "t5")


def test_a_long_line_encodes(tokenizer):
    assert len(tokenizer.encode("今天天气" * 50_000).offsets) > 0
