"""One corpus of Chinese texts whose licences are open, as shards of characters: what fishpaw-small reads.

    python recipes/open_corpus.py --data DIR [--out runs/open_corpus] [--smoke]

The sets of DIR whose licence allows weights to be given away (class A: statutes, documentation, wikis, poems, translated classics,
articles, abstracts, dialogues), without markup and without lines that stood before. A fiftieth of the documents, of the classics whole
books, is kept apart: OUT/unseen/SET.txt. OUT/train and OUT/dev are shards, OUT/vocab.txt their characters. OUT/pairs: sentences two by two
(classical and modern, paraphrases, questions and where the answer stands, neighbours) among a tenth of the documents. Expected: 195,645
documents of 46.6 million characters, small sets read up to five times, in about five minutes of one core.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
from collections import defaultdict
from pathlib import Path

from fishpaw.data.records import read_jsonl
from fishpaw.data.shards import Document, write
from fishpaw.demo import reviews
from fishpaw.text.learn import characters
from fishpaw.text.wordpiece import WordPiece

CORPORA = {                                                          # millions of characters at most, and how often each is read
    "laws_lawrefbook": (10, 1), "ms_vs_docs_zh": (7, 1), "pingcap_docs_cn": (4, 1), "oi_wiki": (3, 1), "react_zh": (3, 1),
    "d2l_zh": (3, 1), "chinese_poetry": (5, 1), "modern": (12, 1), "classical": (4, 1),
    "cmrc2018": (3, 5), "drcd": (3, 3), "csl": (3, 4), "sanwen": (3, 5), "finre": (3, 3), "fewfc": (3, 3), "lccc": (3, 5), "egret": (3, 3),
}  # fmt: skip
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--out", type=Path, default=Path("runs/open_corpus"))
parser.add_argument("--smoke", action="store_true", help="the bundled reviews instead: seconds")
arguments = parser.parse_args()
if not arguments.smoke and not (arguments.data / "corpus").is_dir():
    parser.error(f"{arguments.data} holds no folder corpus: give --data DIR")
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run

def lines(name):
    """Of a text file, packed or not."""
    plain = arguments.data / name
    return (plain.read_text(encoding="utf-8") if plain.is_file() else gzip.open(f"{plain}.gz", "rt", encoding="utf-8").read()).splitlines()

def objects(name):
    """Of a file of JSON values one after another."""
    text, decoder, at = "\n".join(lines(name)), json.JSONDecoder(strict=False), 0
    while (found := re.compile(r"\S").search(text, at)) is not None:
        value, at = decoder.raw_decode(text, found.start())
        yield value

def documents(corpus):
    """(what a document belongs to, its text) for each of a corpus; what belongs together is trained on or kept apart together."""
    if corpus in ("modern", "classical"):
        mark = {"modern": "现代文：", "classical": "古文："}[corpus]
        for record in read_jsonl(arguments.data / "corpus/classical_modern_bitext/docs.jsonl.gz"):
            own = [line.removeprefix(mark) for line in str(record.fields["text"]).splitlines() if line.startswith(mark)]
            yield str(record.fields["id"]).split("/")[1], "\n".join(own)
    elif corpus == "chinese_poetry":
        for record in read_jsonl(arguments.data / "corpus/chinese_poetry/poems.jsonl.gz"):
            yield f"{record.fields['author']}", "\n".join([f"{record.fields['title']}。", *record.fields["lines"]])
    elif corpus == "cmrc2018":
        for name in ("cmrc2018_dev_part70.json", "cmrc2018_trial.json"):
            for article in next(objects(f"rc/cmrc2018/{name}"))["data"]:
                for part in article["paragraphs"]:
                    yield part["context"], "\n".join([part["context"], *(one["question"] for one in part["qas"])])
    elif corpus == "drcd":
        for article in next(objects("rc/drcd/DRCD_dev.json"))["data"]:
            yield article["title"], "\n".join(part["context"] for part in article["paragraphs"])
        for article in objects("rc/drcd/train_cprompt.json"):
            yield article["title"], article["paragraphs"]["context"]
    elif corpus == "csl":
        for name in ("classification/csl_category/train.tsv", "classification/csl_discipline/dev.tsv"):
            yield from ((line, line.split("\t")[1]) for line in lines(name))
    elif corpus in ("sanwen", "finre"):
        sentences = list(dict.fromkeys(re.sub("<N>", "三", line.split("\t")[-1]) for line in lines(f"ie/{corpus}/train.txt")))
        yield from ((sentences[at], "\n".join(sentences[at : at + 8])) for at in range(0, len(sentences), 8))
    elif corpus == "fewfc":
        yield from ((one["id"], one["content"]) for one in objects("ie/fewfc_events/rearranged_train_base.json"))
    elif corpus == "lccc":
        yield from ((line, line.replace(" ", "").replace("\t", "\n")) for line in lines("dialogue/lccc_toy/toy_train.txt"))
    elif corpus == "egret":
        said = [line.split(" +++$+++ ")[-1] for line in lines("dialogue/egret_wenda/egret_wenda_lines.txt")]
        yield from (("\n".join(pair), "\n".join(pair)) for pair in zip(said[::2], said[1::2], strict=False))
    else:
        for record in read_jsonl(arguments.data / "corpus" / corpus / "docs.jsonl.gz"):
            yield str(record.fields["id"]), str(record.fields["text"])

MARKS = re.compile(r"<[^>]{1,200}>|!?\[([^\]]*)\]\([^)]*\)|`{1,3}|\*\*|^[#>\s*\-|]+|\{[^}]{0,80}\}", re.MULTILINE)
seen = set()

def clean(text):
    """Lines of Chinese without markup; a line that stood in another document is left out."""
    kept = []
    for line in MARKS.sub(r"\1", text).splitlines():
        line = line.strip()
        if 2 * sum("\u3400" <= char <= "\u9fff" for char in line) < len(line) or len(line) < 2 or (len(line) > 9 and hash(line) in seen):
            continue
        seen.add(hash(line))
        kept.append(line if line[-1] in "。！？；：，…”』」)）" else f"{line}。")
    return "".join(kept)

def apart(corpus, group):
    """Whether a document is kept apart: a fiftieth of them, of the bitext of its books."""
    return hashlib.sha256(f"{corpus} {group}".encode()).digest()[0] < 5

def pairs():
    """Two sentences that belong together, of documents that aren't kept apart; the sets that are few several times."""
    for record in read_jsonl(arguments.data / "corpus/classical_modern_bitext/docs.jsonl.gz"):
        if not apart("bitext", str(record.fields["id"]).split("/")[1]):
            own = re.findall(r"古文：(.*)\n现代文：(.*)", str(record.fields["text"]))
            yield from own[:40]
    for one in [*objects("similarity/simbert_sample/data_similarity.json"), *objects("similarity/simbert_sample/data_sample.json")] * 8:
        yield from ((one["text"], other) for other in one["synonyms"])
    for name in ("cmrc2018/cmrc2018_dev_part70.json", "cmrc2018/cmrc2018_trial.json", "drcd/DRCD_dev.json"):
        for article in next(objects(f"rc/{name}"))["data"]:
            for part in article["paragraphs"]:
                group = article["title"] if name.startswith("drcd") else part["context"]             # as `documents` has them
                if not apart(name.split("/")[0], group):
                    sentences = {one["question"]: find(part["context"], one["answers"][0]["text"]) for one in part["qas"]}
                    yield from (one for one in sentences.items() for _ in range(3))
    for text in texts[:: max(1, len(texts) // 60_000)]:
        sentences = STOPS.split(text)
        yield from list(zip(sentences, sentences[1:], strict=False))[:24:6]

STOPS = re.compile("[。！？!?；;…]+")

def find(context, answer):
    """The sentence where an answer stands."""
    return next((sentence for sentence in STOPS.split(context) if answer in sentence), context)

def side_by_side(one, other):
    """A document of two sentences with no stop inside, so that it is halved between them; "" where one is short or long."""
    halves = [STOPS.sub("，", MARKS.sub(r"\1", half)).strip("， ") for half in (one, other)]
    return "".join(f"{half}。" for half in halves) if all(4 <= len(half) <= 42 for half in halves) else ""

texts, unseen = [], defaultdict(list)
for index, review in enumerate(reviews(None).train if arguments.smoke else ()):
    (texts if index % 9 else unseen["reviews"]).append(review.text)
for corpus, (most, times) in {} if arguments.smoke else CORPORA.items():
    left, before = most * 1_000_000, len(texts)
    for group, raw in documents(corpus):
        if left > 0 and len(text := clean(raw)) > 8:
            if apart("bitext" if corpus in ("modern", "classical") else corpus, group):
                unseen[corpus].append(text)
            else:
                texts += [text] * times
            left -= len(text)
    print(f"{corpus:20} {len(texts) - before:8,} documents, {most * 1e6 - left:12,.0f} characters, {len(unseen[corpus]):5,} apart")
vocab = characters(texts, least=5, most=8000)
arguments.out.mkdir(parents=True, exist_ok=True)
vocab.save(arguments.out / "vocab.txt")
tokenizer = WordPiece(vocab)
for corpus, own in unseen.items():
    (arguments.out / "unseen").mkdir(exist_ok=True)
    (arguments.out / "unseen" / f"{corpus}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
mixed = [text for own in unseen.values() for text in own[: 2000 // len(unseen)]]
together = [text for text in (side_by_side(*two) for two in ([] if arguments.smoke else pairs())) if text] or texts[:99]
print(f"pairs: {len(together):,} of sentences")
for name, part in (("dev", mixed), ("pairs", [*together, *texts[3::10]]), ("train", texts)):
    cut = (part[start : start + 1000] for start in range(0, len(part), 1000))
    encoded = (Document(one.ids) for some in cut for one in tokenizer.encode_batch(some, special=False))
    shards = write(encoded, arguments.out / name, vocab_size=len(vocab))
    print(f"{name}: {len(shards):,} documents, {shards.tokens:,} tokens")
