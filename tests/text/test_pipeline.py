"""A tokenizer.json of any kind: ids, offsets and segments as the library gives, under our own rules of truncation."""

from __future__ import annotations

import json
import pickle
import time

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from fishpaw.errors import CheckpointError, DataError
from fishpaw.files import folder_atomic, verify_manifest
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.load import load_tokenizer
from fishpaw.text.normalize import mend
from fishpaw.text.pipeline import Pipeline

SPLIT = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
KINDS = ["t5", "xlm-roberta", "albert", "llama", "llama3", "qwen", "modernbert", "roberta"]


def build(kind, lines):
    """A small tokenizer with the parts of the real one."""
    names = {
        "t5": ["<pad>", "</s>", "<unk>"],
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "llama": ["<unk>", "<s>", "</s>"],
        "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "modernbert": ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    }[kind]
    if kind in ("t5", "xlm-roberta", "albert"):
        rust = RustTokenizer(models.Unigram())
        rust.normalizer = (
            normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
            if kind == "albert"
            else normalizers.NFKC()
        )
        rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        rust.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=1999, special_tokens=names, unk_token="<unk>", show_progress=False)
    else:
        rust = RustTokenizer(
            models.BPE(
                byte_fallback=kind == "llama",
                fuse_unk=kind == "llama",
                unk_token="<unk>" if kind == "llama" else None,
                ignore_merges=kind == "llama3",
            )
        )
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind in ("modernbert", "roberta"))
        if kind == "llama":
            rust.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
            rust.decoder = decoders.Sequence(
                [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        else:
            rust.normalizer = normalizers.NFC() if kind in ("qwen", "modernbert") else None
            rust.pre_tokenizer = (
                pre_tokenizers.Sequence([pre_tokenizers.Split(SPLIT, "isolated"), bytes_of]) if kind in ("qwen", "llama3") else bytes_of
            )
            rust.decoder = decoders.ByteLevel()
        alphabet = [] if kind == "llama" else pre_tokenizers.ByteLevel.alphabet()
        tokens = names + ([f"<0x{value:02X}>" for value in range(256)] if kind == "llama" else [])
        trainer = trainers.BpeTrainer(vocab_size=601, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    rust.train_from_iterator([mend(line) for line in lines[:200]], trainer)
    rust = RustTokenizer.from_str(
        json.dumps(
            json.loads(rust.to_str())
            | {"added_tokens": [token for token in json.loads(rust.to_str())["added_tokens"] if not token["content"].startswith("<0x")]}
        )
    )
    ends = {
        "t5": ("$A </s>", "$A </s> $B </s>"),
        "xlm-roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "llama": ("<s> $A", "<s> $A <s> $B:1"),
        "albert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "modernbert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
        "llama3": ("<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|> $B:1"),
    }
    if kind in ends:
        used = [(name, rust.token_to_id(name)) for name in names if name in ends[kind][1]]
        template = processors.TemplateProcessing(single=ends[kind][0], pair=ends[kind][1], special_tokens=used)
        rust.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template]) if kind == "llama3" else template
    elif kind == "qwen":
        rust.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        rust.post_processor = processors.RobertaProcessing(("</s>", rust.token_to_id("</s>")), ("<s>", rust.token_to_id("<s>")))
    rust.add_special_tokens([AddedToken("<more>", special=True, lstrip=True, normalized=False)])
    rust.enable_truncation(5)  # a file may say so; the caller does not
    rust.enable_padding(length=7)
    return rust


@pytest.fixture(scope="module", params=KINDS)
def pair(request, hard_lines, tmp_path_factory):
    """Ours, opened from a folder, and the library's own."""
    rust, folder = build(request.param, hard_lines), tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_text(rust.to_str(), encoding="utf-8")
    rust.no_truncation()
    rust.no_padding()
    ours = load_tokenizer(folder)
    assert isinstance(ours, Pipeline)
    return ours, rust, folder


def test_everything_is_the_librarys(pair, hard_lines):
    ours, rust, _ = pair
    for line in [*hard_lines, "a<more>b  <more> c"]:
        for second in (None, "两个 texts"):
            for special in (True, False):
                found, theirs = ours.encode(line, second, special=special), rust.encode(mend(line), second, add_special_tokens=special)
                assert (found.ids, found.tokens, found.offsets) == (theirs.ids, theirs.tokens, theirs.offsets)
                assert found.segments == theirs.type_ids
        ids = ours.encode(line).ids
        assert ours.decode(ids, skip_special=False) == rust.decode(ids, skip_special_tokens=False)
    assert ours.size == rust.get_vocab_size(with_added_tokens=True) and ours.tokens[ours.size - 1] == "<more>"
    assert any(ours.encode(line).ids != rust.encode("x" + mend(line)).ids for line in hard_lines)  # the planted fault


def test_truncation_is_the_sisters(pair):
    ours, _, _ = pair
    added = len(ours.encode(""))
    both = len(ours.encode("", ""))
    inner = ours.encode("weather today is good", special=False)
    for side, part in (("right", slice(0, 4)), ("left", slice(-4, None))):
        got = ours.encode("weather today is good", max_length=4 + added, truncate=side)
        assert len(got) == 4 + added and [id for id, span in zip(got.ids, got.offsets, strict=True) if span != (0, 0)] == inner.ids[part]
    got = ours.encode("weather today is good", "b c", max_length=both + 5)
    assert len(got) == both + 5
    assert ours.encode_batch(["a", "b"], ["c", "d"])[1] == ours.encode("b", "d")


def test_roles_are_found_and_named(pair):
    ours, rust, folder = pair
    assert ours.tokens[ours.pad_id] in ("<pad>", "[PAD]", "</s>", "<|endoftext|>", "<|end_of_text|>")
    assert ours.tokens[ours.eos_id] in ("</s>", "[SEP]", "<|endoftext|>", "<|end_of_text|>")
    files = {**ours.files, "tokenizer_config.json": json.dumps({"pad_token": {"content": "<more>"}}).encode()}
    assert Pipeline(files).pad_id == rust.token_to_id("<more>") and Pipeline(files).pad_id in Pipeline(files).special_ids
    assert Pipeline({**ours.files, "special_tokens_map.json": b'{"mask_token": "<more>"}'}).mask_id == rust.token_to_id("<more>")
    if "[CLS]" not in ours.tokens:
        with pytest.raises(DataError, match="no cls token"):
            _ = ours.cls_id


def test_a_saved_one_comes_back_byte_for_byte(pair, tmp_path):
    ours, _, _ = pair
    with folder_atomic(tmp_path / "model") as folder:
        ours.save(folder)
    verify_manifest(tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == ours.files["tokenizer.json"]
    again = load_tokenizer(tmp_path / "model")
    assert (
        again.encode_batch(["今天 <more>", ""])
        == ours.encode_batch(["今天 <more>", ""])
        == pickle.loads(pickle.dumps(ours)).encode_batch(["今天 <more>", ""])
    )


def test_odd_texts_encode(pair):
    ours, _, _ = pair
    for text in ("", "\0", "a\ud800b", "\u0301" * 997, "a" * 100_000, "今" * 100_000):
        assert len(ours.encode(text)) >= len(ours.encode(""))
    for id in (-1, ours.size):
        with pytest.raises(DataError, match="outside"):
            ours.decode([id])


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["llama3", "qwen", "modernbert"])
def test_transformers_opens_the_saved_folder_with_the_same_ids(kind, hard_lines, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = Pipeline(
        {
            "tokenizer.json": build(kind, hard_lines).to_str().encode(),
            "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<more>"}',
        }
    )
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for line in hard_lines[:99]:
        assert ours.encode(line).ids == theirs(mend(line), truncation=False, padding=False)["input_ids"]


def test_gpt2s_own_stays_byte_level(hard_lines, tmp_path):
    rust = build("roberta", hard_lines)
    described = json.loads(rust.to_str()) | {
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    }
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] != "<more>"]
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}', encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    assert isinstance(load_tokenizer(tmp_path), ByteLevel)
    for change in ({"normalizer": {"type": "NFC"}}, {"post_processor": json.loads(rust.to_str())["post_processor"]}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(described | change), encoding="utf-8")
        assert isinstance(load_tokenizer(tmp_path), Pipeline)


def test_tokens_that_only_the_configuration_lists_are_added(hard_lines, tmp_path):
    text = build("qwen", hard_lines).to_str()
    size = Pipeline({"tokenizer.json": text.encode()}).size
    listed = {"added_tokens_decoder": {str(size): {"content": "<late>", "special": True}}, "mask_token": "<late>"}
    ours = Pipeline({"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps(listed).encode()})
    assert ours.size == size + 1 and ours.encode("a<late>").ids[-1] == size == ours.mask_id
    for wrong in ({str(size + 1): {"content": "<late>"}}, {"0": {"content": "<late>"}}, {"x": {"content": "<late>"}}, {"3": 5}):
        with pytest.raises(CheckpointError, match="added token"):
            Pipeline({"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps({"added_tokens_decoder": wrong}).encode()})


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "<late>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"600": {"content": "\ud800"}}}),
        ("added_tokens.json", {"\ud800": 600}),
        ("added_tokens.json", {"<late>": True}),
    ],
    ids=range(4),
)
@pytest.mark.parametrize("kind", ["qwen", "wordpiece"])
def test_an_id_of_thousands_of_digits_and_a_lone_surrogate_are_refused(hard_lines, tmp_path, kind, name, listed):
    if kind == "qwen":
        (tmp_path / "tokenizer.json").write_text(build(kind, hard_lines).to_str(), encoding="utf-8")
    else:
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    (tmp_path / name).write_text(json.dumps(listed), encoding="utf-8")
    with pytest.raises(CheckpointError, match="an added token is"):
        load_tokenizer(tmp_path)


def test_many_added_tokens_are_added_at_once(hard_lines):
    """One at a time, 4,000 take about 9 s: the library builds its automaton anew each time."""
    text = build("qwen", hard_lines).to_str()
    size = Pipeline({"tokenizer.json": text.encode()}).size
    listed = {f"<late {number}>": size + number for number in reversed(range(4_000))}          # not in the order of their ids
    start = time.process_time()
    ours = Pipeline({"tokenizer.json": text.encode(), "added_tokens.json": json.dumps(listed).encode()})
    assert time.process_time() - start < 3  # about 0.1 s
    assert ours.size == size + 4_000 and ours.encode("<late 3999><late 0>").ids == [size + 3_999, size]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": {"type": "Unigram"}}, "Missing vocab"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "vocabulary is empty"),
        ({"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}}, "far apart"),
        ({"model": {"type": "BPE", "vocab": {"a": 5_000_000_000}, "merges": []}}, r"tokenizer\.json"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}}, r"tokenizer\.json"),
        ({"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}}, "UnkIdNotInVocabulary"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["c", 0.0]]}}, "unk_id"),
        ({"model": {"type": "Nonsense", "vocab": {"a": 0}}}, r"tokenizer\.json"),
        (
            {
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
            },
            "charsmap",
        ),
        (
            {
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False},
            },
            "Oniguruma",
        ),
        (
            {
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "q", "type_id": 0}}],
                    "pair": [{"SpecialToken": {"id": "q", "type_id": 0}}],
                    "special_tokens": {},
                },
            },
            "key",
        ),
        (
            {
                "model": {"type": "BPE", "vocab": {"a": 7}, "merges": []},
                "added_tokens": [
                    {
                        "id": 3,
                        "content": "<x>",
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    }
                ],
            },
            "'<x>' has id 3",
        ),
    ],
)
def test_a_broken_file_is_one_clear_sentence(content, said, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((CheckpointError, DataError), match=said):
        load_tokenizer(tmp_path)
