"""Open the tokenizer that a folder holds, whichever it is, from its files alone. No code that a file names is ever run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fishpaw.errors import CheckpointError, DataError
from fishpaw.files import blobs, inside
from fishpaw.text.bpe import ByteLevel
from fishpaw.text.cpm import Cpm
from fishpaw.text.encoding import Tokenizer
from fishpaw.text.pipeline import Pipeline, added_tokens, content, named_tokens
from fishpaw.text.sentencepiece import SentencePiece
from fishpaw.text.vocab import SPECIAL, Vocab
from fishpaw.text.wordpiece import WordPiece

__all__ = ["load_tokenizer"]


def load_tokenizer(folder: str | Path, *, pre_tokenize: Callable[[str], list[str]] | None = None) -> Tokenizer:
    """The tokenizer of a folder: vocab.txt -> WordPiece; tokenizer.json -> WordPiece or ByteLevel where it is BERT's or GPT-2's, else a
    Pipeline; vocab.json + merges.txt -> ByteLevel; spiece.model or another *.model -> SentencePiece, or CPM's.

    Options come from tokenizer_config.json, else tokenizer.json, else BERT's defaults (lower case, ideographs apart).
    A RoFormerTokenizer cuts words with jieba. `pre_tokenize` gives back a function that could not be saved (WordPiece only).
    Raises CheckpointError for a missing or damaged file, one that is no regular file or a link that leads out of the folder, or a kind of
    tokenizer that is not supported, naming the file; ConfigError where a package is needed that is not installed.
    """
    folder = Path(folder)
    config = _read_json(_held(folder, "tokenizer_config.json"))
    model = _model_file(folder)
    if model is not None and (model.name == "chinese_vocab.model" or _class(folder, config) == "CpmTokenizer"):
        return _checked(model, lambda: Cpm(_read_bytes(model), name=model.name, files=_beside(folder) or None))
    described = _read_json(_held(folder, "tokenizer.json"))
    kind = _field(described, "model", dict, folder / "tokenizer.json").get("type") if described is not None else None
    if _held(folder, "vocab.txt").is_file():
        return _wordpiece(folder, _vocab_txt(_held(folder, "vocab.txt")), config, described, pre_tokenize)
    if described is not None:
        if kind == "WordPiece" and _is_berts(described):
            return _wordpiece(folder, _vocab_json(described, folder / "tokenizer.json"), config, described, pre_tokenize)
        if kind == "BPE" and _is_gpt2s(described, config):
            return _byte_level(folder, config, described)
        files = {"tokenizer.json": _read_bytes(_held(folder, "tokenizer.json")), **_beside(folder)}
        return _checked(folder, lambda: Pipeline(files))
    if _held(folder, "vocab.json").is_file() and _held(folder, "merges.txt").is_file():
        return _byte_level(folder, config, None)
    if model is not None:
        return _sentencepiece(folder, model, config or {})
    raise CheckpointError(f"{folder} holds no tokenizer: looked for vocab.txt, tokenizer.json, vocab.json with merges.txt, and *.model.",
                          fix="Copy the tokenizer files of the original model into the folder.")


_OPTIONS = (                                                    # ours, tokenizer_config.json's, tokenizer.json's, default
    ("lower", "do_lower_case", "lowercase", True),
    ("cjk", "tokenize_chinese_chars", "handle_chinese_chars", True),
    ("strip_accents", "strip_accents", "strip_accents", None),
)
_JIEBA_CLASSES = {"RoFormerTokenizer", "RoFormerTokenizerFast"}
_Built = TypeVar("_Built")
_LAYOUTS = {                                                    # class or model_type -> a name of sentencepiece.LAYOUTS
    "T5Tokenizer": "t5", "MT5Tokenizer": "t5", "AlbertTokenizer": "albert", "XLMRobertaTokenizer": "xlm-roberta", "LlamaTokenizer": "llama",
    "t5": "t5", "mt5": "t5", "umt5": "t5", "albert": "albert", "xlm-roberta": "xlm-roberta", "llama": "llama",
}
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_LARGEST = 256 * 2**20                                          # bytes; the largest tokenizer.json known is a tenth of it


def _wordpiece(folder: Path, vocab: Vocab, config: dict[str, Any] | None, described: dict[str, Any] | None,
               pre_tokenize: Callable[[str], list[str]] | None) -> WordPiece:
    config_path, described_path = folder / "tokenizer_config.json", folder / "tokenizer.json"
    rules = _normalizer(described or {})
    options: dict[str, bool | None] = {}
    for name, key, rule, default in _OPTIONS:
        value = config[key] if config and key in config else rules.get(rule, default)
        if not isinstance(value, bool) and not (value is None and name == "strip_accents"):
            raise CheckpointError(f"{config_path if config and key in config else described_path}: {key} is {value!r}, not true or false.",
                                  fix="Correct the file.")
        options[name] = value
    more = _added_tokens(folder, config, described)
    vocab, added = _with_added(vocab, more, folder)
    return _checked(folder, lambda: WordPiece(
        vocab, lower=bool(options["lower"]), cjk=bool(options["cjk"]), strip_accents=options["strip_accents"], added=added,
        pre_tokenize=pre_tokenize or ("jieba" if _wants_jieba(folder, config) else None)))


def _sentencepiece(folder: Path, model: Path, config: dict[str, Any]) -> SentencePiece:
    described = _read_json(_held(folder, "config.json")) or {}
    named = _class(folder, config)
    layout = _LAYOUTS.get(named or "") or _LAYOUTS.get(str(described.get("model_type")))
    if layout is None:
        raise CheckpointError(f"{model}: nothing says where its special tokens go (tokenizer_class is {named!r}).",
                              fix="Write tokenizer_config.json with the tokenizer_class, T5Tokenizer for instance.")
    count = config.get("extra_ids", 100 if described.get("model_type") in ("t5", None) else 0) if layout == "t5" else 0
    flags = [config.get("do_lower_case", layout == "albert"), config.get("keep_accents", layout != "albert")]
    if type(count) is not int or not 0 <= count <= 10_000 or not all(isinstance(flag, bool) for flag in flags):
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_ids, do_lower_case or keep_accents is of the wrong kind.",
                              fix="Correct the file.")
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]
    options = {"lower": flags[0], "accents": flags[1]} if layout == "albert" else {}
    data, files = _read_bytes(model), _beside(folder)
    if "tokenizer_config.json" not in files:                    # so that a saved folder says what config.json said here
        kind = next(name for name, one in _LAYOUTS.items() if one == layout)
        values: dict[str, Any] = {"tokenizer_class": kind} | ({"extra_ids": count} if layout == "t5" else {})
        files["tokenizer_config.json"] = (json.dumps(values, indent=2) + "\n").encode()

    def build(extra: list[str]) -> SentencePiece:
        return SentencePiece(data, layout, extra=extra, name=model.name, files=files, **options)

    found = _checked(model, lambda: build(sentinels))
    more = sorted(_added_tokens(folder, config, None).items())
    later = [token for id, token in more if id >= found.size]
    whole = _checked(model, lambda: build(sentinels + later)) if later else found
    for id, token in more:
        if id >= whole.size or whole.tokens[id] != token:
            there = repr(whole.tokens[id]) if id < whole.size else "nothing"
            raise CheckpointError(f"{folder}: added token {token!r:.60} has id {id}, where the vocabulary has {there}.",
                                  fix="The tokenizer files are of different models: fetch them again.")
    return whole


def _model_file(folder: Path) -> Path | None:
    """The SentencePiece model of a folder, by its usual names, else the only *.model."""
    names = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chinese_vocab.model"]
    others = sorted(path.name for path in folder.glob("*.model"))
    for name in [*names, *(others if len(others) == 1 else [])]:
        if (path := _held(folder, name)).is_file():
            return path
    return None


def _class(folder: Path, config: dict[str, Any] | None) -> str | None:
    """The tokenizer's class, of tokenizer_config.json or else of config.json, without "Fast"."""
    for record in (config, _read_json(_held(folder, "config.json"))):
        if record and isinstance(record.get("tokenizer_class"), str):
            return str(record["tokenizer_class"]).removesuffix("Fast")
    return None


def _beside(folder: Path) -> dict[str, bytes]:
    return {name: _read_bytes(_held(folder, name)) for name in _BESIDE if _held(folder, name).is_file()}


def _is_berts(described: dict[str, Any]) -> bool:
    """Whether WordPiece stands between BERT's own parts, as far as the file names any."""
    rules = {"BertNormalizer": described.get("normalizer"), "BertPreTokenizer": described.get("pre_tokenizer")}
    return all(not rule or isinstance(rule, dict) and rule.get("type") == kind for kind, rule in rules.items())


def _is_gpt2s(described: dict[str, Any], config: dict[str, Any] | None) -> bool:
    """Whether BPE is on bytes after GPT-2's own regular expression, without special tokens around a text; a broken file, too."""
    rule, after, model = (described.get(part) or {} for part in ("pre_tokenizer", "post_processor", "model"))
    if not isinstance(rule, dict) or rule.get("type") != "ByteLevel" or rule.get("use_regex") is False or described.get("normalizer"):
        return False
    if isinstance(after, dict) and after.get("type", "ByteLevel") != "ByteLevel":
        return False
    if model.get("byte_fallback") or model.get("ignore_merges"):
        return False
    listed = described.get("added_tokens")
    plain = all(not (token.get("lstrip") or token.get("rstrip") or token.get("single_word")) and token.get("special", True)
                for token in listed if isinstance(token, dict)) if isinstance(listed, list) else True
    vocab = model.get("vocab")
    eos = named_tokens(config or {}).get("eos", "<|endoftext|>")
    held = isinstance(listed, list) and any(content(token) == eos for token in listed)
    return plain and (held or not isinstance(vocab, dict) or not vocab or eos in vocab or len(vocab) < 256)


def _wants_jieba(folder: Path, config: dict[str, Any] | None) -> bool:
    if config and "pre_tokenize" in config:
        if config["pre_tokenize"] not in ("jieba", None):       # a file can't name code
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: pre_tokenize is {config['pre_tokenize']!r}.",
                                  fix="Use 'jieba' or null.")
        return config["pre_tokenize"] is not None
    if config and "tokenizer_class" in config:
        return config["tokenizer_class"] in _JIEBA_CLASSES
    model = _read_json(_held(folder, "config.json")) or {}     # a folder without the class: transformers goes by the model, so do we
    return bool(model.get("tokenizer_class", "RoFormerTokenizer") in _JIEBA_CLASSES and model.get("model_type") == "roformer")


def _byte_level(folder: Path, config: dict[str, Any] | None, described: dict[str, Any] | None) -> ByteLevel:
    config = config or {}
    prefix_space = config.get("add_prefix_space", False)
    if described is not None:
        path = folder / "tokenizer.json"
        rule = described["pre_tokenizer"]
        model = _field(described, "model", dict, path)
        vocab, pairs = _field(model, "vocab", dict, path), _field(model, "merges", list, path)
        prefix_space = config.get("add_prefix_space", rule.get("add_prefix_space", False))
        lines = list(enumerate(pairs))
    else:
        path = _held(folder, "merges.txt")
        vocab = _read_json(_held(folder, "vocab.json")) or {}
        lines = [(number, line) for number, line in enumerate(_read_text(path).split("\n"), 1)
                 if line.strip() and not line.startswith("#version")]
    merges = []
    for number, line in lines:
        parts = line.rstrip("\r").split(" ") if isinstance(line, str) else line
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise CheckpointError(f"{path}: merge {number} is {line!r:.60}, not two tokens.", fix="Fetch the file again.")
        merges.append((parts[0], parts[1]))
    if not all(isinstance(id, int) for id in vocab.values()):
        raise CheckpointError(f"{folder}: the vocabulary maps a token to something other than a number.", fix="Fetch the files again.")
    more = _added_tokens(folder, config, described)
    for id, token in sorted(more.items()):
        if vocab.setdefault(token, id) != id:
            raise CheckpointError(f"{folder}: added token {token!r} has id {id}, but {vocab[token]} in the vocabulary.",
                                  fix="Fetch the files again.")
    eos = content(config.get("eos_token")) or "<|endoftext|>"
    return _checked(folder, lambda: ByteLevel(vocab, merges, eos=eos, prefix_space=bool(prefix_space), added=list(more.values())))


def _added_tokens(folder: Path, config: dict[str, Any] | None, described: dict[str, Any] | None) -> dict[int, str]:
    """Tokens by id that are matched whole."""
    more = _read_json(_held(folder, "added_tokens.json")) or {}
    return _checked(folder, lambda: {id: text for id, text, _ in added_tokens(config or {}, described or {}, more)})


def _with_added(vocab: Vocab, more: dict[int, str], folder: Path) -> tuple[Vocab, list[str]]:
    """The vocabulary with the added tokens that follow it, and all that are matched whole; an id must be where its token stands."""
    tokens = list(vocab.tokens)
    index = vocab.index
    for id, token in sorted(more.items()):
        if id == len(tokens) and token not in index:
            tokens.append(token)
        elif id < len(tokens) and tokens[id] != token or id > len(tokens) or index.get(token, id) != id:
            there = repr(tokens[id]) if id < len(tokens) else "nothing"
            raise CheckpointError(f"{folder}: added token {token!r} has id {id}, where the vocabulary has {there}.",
                                  fix="vocab.txt and the other tokenizer files are of different models: fetch them again.")
    return Vocab(tuple(tokens)), [token for token in more.values() if token not in SPECIAL]


def _normalizer(described: dict[str, Any]) -> dict[str, Any]:
    rule = described.get("normalizer")
    return rule if isinstance(rule, dict) and rule.get("type") == "BertNormalizer" else {}


def _vocab_txt(path: Path) -> Vocab:
    try:
        return Vocab.load(path)
    except DataError as error:
        raise CheckpointError(error.what, fix=error.fix) from error


def _vocab_json(described: dict[str, Any], path: Path) -> Vocab:
    vocab = _field(_field(described, "model", dict, path), "vocab", dict, path)
    tokens = [""] * min(max((id for id in vocab.values() if isinstance(id, int)), default=0) + 1, 2 * len(vocab) + 100)
    for token, id in vocab.items():                             # a vocab.txt with doubled lines left holes, which stay
        if not isinstance(id, int) or not 0 <= id < len(tokens) or tokens[id]:
            raise CheckpointError(f"{path}: token {token!r:.60} has id {id!r:.60}: not a number from 0 on, doubled, or far too large.",
                                  fix="Fetch the file again.")
        tokens[id] = token
    return _checked(path, lambda: Vocab(tuple(tokens)))


def _checked(where: Path, build: Callable[[], _Built]) -> _Built:
    try:
        return build()
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{where}: {error.what}", fix=error.fix) from error


def _field(record: dict[str, Any], name: str, kind: type, path: Path) -> Any:
    value = record.get(name)
    if not isinstance(value, kind):
        raise CheckpointError(f"{path}: the field {name!r} is missing or damaged.", fix="Fetch the file again.")
    return value


def _held(folder: Path, name: str) -> Path:
    """A file of the folder, which need not exist, but is no pipe and no link to elsewhere (a hub snapshot's blobs aside)."""
    path = inside(folder, name, also=blobs(folder))
    if path.exists() and not path.is_file():                    # a pipe would be waited for
        raise CheckpointError(f"{path}: is no regular file.", fix="Put the file itself there.")
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for a tokenizer file.", fix="Fetch the file again.")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror or error}.", fix="Check the file and its permissions.") from error


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: byte {error.start} is not UTF-8.", fix="Fetch the file again.") from error


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is no file."""
    if not path.is_file():
        return None
    try:
        record = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}, line {error.lineno}: {error.msg}; the file is broken.", fix="Fetch the file again.") from error
    except (RecursionError, ValueError) as error:               # nested too deeply; a number of 10,000 digits
        raise CheckpointError(f"{path}: is not valid JSON.", fix="Fetch the file again.") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{path}: holds a {type(record).__name__}, not an object.", fix="Fetch the file again.")
    return record
