"""Each recipe runs from top to bottom with --smoke, and ends with its line of result."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fishpaw.data.shards import Shards
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.weights.load import load

ROOT = Path(__file__).resolve().parent.parent


def test_sentiment_runs_on_the_bundled_reviews(tmp_path):
    pytest.importorskip("sklearn", reason="the recipe's baseline needs scikit-learn (extra recipes)")
    environment = {name: value for name, value in os.environ.items() if name != "FISHPAW_DATA"}
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "sentiment.py"), "--smoke", "--seeds", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "200 used to train, 50 to evaluate" in lines[0] and re.match(r"RoFormer from nothing, seed 3  0\.\d{4}  \(4 steps, ", lines[-2])
    last = re.fullmatch(r"RoFormer from nothing, mean    (0\.\d{4}) ± 0\.0000 of 1 seeds", lines[-1])
    assert last, lines[-1]
    summary = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert f"{summary['mean']:.4f}" == last[1] and summary["accuracy"] == [summary["mean"]] and 0.5 < summary["baseline"] < 1


@pytest.mark.slow
def test_variants_of_a_masked_language_model_run_and_are_read_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "mlm_variants.py"), "--smoke", "--out", str(tmp_path), "--only",
               "post-LN", "Performer"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        assert ("trial post-LN" in done.stdout) == (turn == 0)       # the second time everything is there
    table = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert [len(table[name]["losses"]) for name in ("post-LN", "Performer")] == [3, 1] and len(table["abrupt"]) == 3
    assert 0 <= table["swap"]["after"]["accuracy"] <= 1 and table["Performer"]["tokens_per_second"] > 0


@pytest.mark.slow
def test_two_ways_to_train_a_translator_run_and_are_read_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "teaforn.py"), "--smoke", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        assert ("TeaForN          2  loss" in done.stdout) == (turn == 0)      # the second time everything is there
    table = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert [len(table[way]) for way in ("teacher forcing", "TeaForN")] == [3, 3]
    assert all(0 <= one["bleu 4"] <= 100 and len(one["said 1"]) == 6 for way in table.values() for one in way)


@pytest.mark.slow
def test_three_ways_to_end_a_text_run_and_are_read_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "termination.py"), "--smoke", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        assert ("greedy                100.00% endless" in done.stdout) == (turn == 0)   # the second time everything is there
        assert done.stdout.count("Greedy search ends after 693 tokens at most") == 2
    table = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert set(table) == {"softmax", "self_terminating", "non_monotone"}
    for one in table.values():
        assert one.pop("perplexity") > 1 and len(one) == 11
        assert all(0 <= way["endless"] <= 1 and way["longest"] <= 30 for way in one.values())


@pytest.mark.slow
def test_a_model_of_whole_conversations_learns_talks_and_is_measured_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "dialogue.py"), "--smoke", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    first, again = (subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    lines = first.stdout.splitlines()
    assert re.fullmatch(r"\d+ conversations about a subject and 0 of small talk to learn from, \d+ measured", lines[0])
    assert re.fullmatch(r"perplexity \d+\.\d\d  relevance 0\.\d{3} by log-probability, 0\.\d{3} by mutual information  "
                        r"distinct-1 0\.\d{4}  distinct-2 0\.\d{4}", lines[-1])  # fmt: skip
    assert again.stdout.splitlines()[-1] == lines[-1] and sum(line.startswith("Conversation ") for line in lines) == 3
    summary = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert [len(turns) for turns in summary["conversations"]] == [6, 6, 6] and summary["perplexity"] > 1


@pytest.mark.slow
def test_losses_for_a_rare_class_are_compared_and_read_again(tmp_path):
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "class_imbalance.py"), "--smoke", "--out", str(tmp_path),
               "--seeds", "1,2", "--only", "cross entropy", "post hoc", "smooth F1"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for turn in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        assert ("smooth F1         seed 2  balanced" in done.stdout) == (turn == 0)      # the second time everything is there
        assert re.search(r"231 to train on, 39 of them rare, 9 held out", done.stdout)
    table = json.loads((tmp_path / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert [len(seeds) for seeds in table.values()] == [2, 2, 2]
    assert all(0 <= one[column] <= 1 for seeds in table.values() for one in seeds for column in set(one) - {"seconds"})
    for plain, adjusted in zip(table["cross entropy"], table["post hoc"], strict=True):    # the same model, another border
        assert plain["AUC"] == adjusted["AUC"] and plain["F1, searched"] == adjusted["F1, searched"]


@pytest.mark.slow
def test_a_small_model_is_made_of_its_corpus_and_told_what_it_can_do(tmp_path):
    pytest.importorskip("sklearn", reason="the recipe's baselines need scikit-learn (extra recipes)")
    environment = {name: value for name, value in os.environ.items() if name != "FISHPAW_DATA"} | {"PYTHONPATH": str(ROOT / "src")}

    def run(recipe, *words):
        command = [sys.executable, "-W", "error", str(ROOT / "recipes" / recipe), "--smoke", *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = run("fishpaw_small.py", "--out", tmp_path)
    assert "documents" in made and re.match(r"4 steps, \d+ s, best loss \d\.\d{4}: ", made.splitlines()[-1])
    model, corpus = tmp_path / "smoke" / "run" / "model", tmp_path / "smoke" / "smoke"
    assert (corpus / "unseen" / "reviews.txt").read_text(encoding="utf-8").strip()
    told = run("small_report.py", "--out", tmp_path / "report", "--data", tmp_path, "--model", model, "--corpus", corpus)
    found = json.loads((tmp_path / "report" / "smoke" / "result.json").read_text(encoding="utf-8"))
    assert set(found) == {"of", "fill", "write", "probe", "tune", "adapt"} and "holds no similarity" in told
    assert set(found["fill"]["reviews"]) == {"model", "untrained", "bigrams", "characters"}
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "ship_small.py"), "--run", str(tmp_path / "smoke"), "--report",
               str(tmp_path / "report" / "smoke"), "--corpus", str(corpus), "--out", str(tmp_path / "shipped")]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "shipped" / "README.md").read_text(encoding="utf-8")
    accuracy = json.loads((tmp_path / "smoke" / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-2])["masked_accuracy"]
    assert f" {accuracy:.4g} |" in card and f"| {found['probe']['model']['accuracy']:.4g} |" in card
    assert load(tmp_path / "shipped")[0].mask.clock == "full"


def test_what_the_corpus_keeps_apart_is_in_no_other_part(tmp_path):
    """Every set made up, in each document a number of its own. CMRC's articles have titles, too, by which its documents aren't drawn."""
    number = iter(range(10**6))

    def told():
        own = "".join("零一二三四五六七八九"[int(digit)] for digit in f"{next(number):05}")
        return f"编号是{own}的文章，说的是天气。第{own}篇的第二句，说的是公园。"

    def put(name, *values):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        text = ("\n".join(lines) + "\n").encode("utf-8")
        path.write_bytes(gzip.compress(text) if name.endswith("z") else text)

    def articles(count):
        made = []
        for at in range(count):
            text = told()
            asked = {"question": f"{text[:9]}说的是什么？", "answers": [{"text": "公园"}]}
            made.append({"title": f"题目{at}", "paragraphs": [{"context": text, "qas": [asked]}]})
        return {"data": made}

    for corpus in ("laws_lawrefbook", "ms_vs_docs_zh", "pingcap_docs_cn", "oi_wiki", "react_zh", "d2l_zh"):
        put(f"corpus/{corpus}/docs.jsonl.gz", *({"id": f"{corpus}{at}", "text": told()} for at in range(60)))
    put("corpus/chinese_poetry/poems.jsonl.gz", *({"author": f"诗人{at}", "title": "诗", "lines": [told()]} for at in range(60)))
    put("corpus/classical_modern_bitext/docs.jsonl.gz", *(
        {"id": f"a/book{at}/1", "text": "\n".join(f"古文：{text}\n现代文：今{text}" for text in [told().split("。")[0]])}
        for at in range(200)))  # fmt: skip
    put("rc/cmrc2018/cmrc2018_dev_part70.json", articles(400))
    put("rc/cmrc2018/cmrc2018_trial.json", articles(3))
    put("rc/drcd/DRCD_dev.json", articles(200))
    put("rc/drcd/train_cprompt.json", *({"title": f"题{at}", "paragraphs": {"context": told()}} for at in range(9)))
    for name in ("csl_category/train.tsv", "csl_discipline/dev.tsv"):
        put(f"classification/{name}", *(f"{at}\t{told()}" for at in range(60)))
    for name in ("sanwen", "finre"):
        put(f"ie/{name}/train.txt", *(f"a\tb\t{told()}" for _ in range(90)))
    put("ie/fewfc_events/rearranged_train_base.json", *({"id": at, "content": told()} for at in range(60)))
    put("dialogue/lccc_toy/toy_train.txt", *(told() for _ in range(60)))
    put("dialogue/egret_wenda/egret_wenda_lines.txt", *(f"a +++$+++ {told()}" for _ in range(60)))
    for name in ("similarity", "sample"):
        put(f"similarity/simbert_sample/data_{name}.json", *({"text": told(), "synonyms": [told()]} for _ in range(9)))
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / "open_corpus.py"), "--data", str(tmp_path / "data"), "--out",
               str(tmp_path / "out")]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 0, done.stderr
    tokenizer = WordPiece(Vocab.load(tmp_path / "out" / "vocab.txt"))

    def numbers(text):
        return set(re.findall("[零一二三四五六七八九]{5}", text))

    def read(part):
        shards = Shards(tmp_path / "out" / part)
        return [numbers("".join(tokenizer.tokens[id] for id in shards[at].ids)) for at in range(len(shards))]

    unseen = {path.stem: numbers(path.read_text(encoding="utf-8")) for path in (tmp_path / "out" / "unseen").glob("*.txt")}
    assert len(unseen["cmrc2018"]) > 3 and len(unseen["modern"]) > 1 and unseen["modern"] == unseen["classical"]
    apart, train, together = set().union(*unseen.values()), set().union(*read("train")), set().union(*read("pairs"))
    assert not apart & train and not apart & together and len(train) > 1000 < len(together)
    assert set().union(*read("dev")) == apart


def smoke(recipe, out):
    """What a recipe's trial on the bundled texts says, and its table."""
    command = [sys.executable, "-W", "error", str(ROOT / "recipes" / recipe), "--smoke", "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, encoding="utf-8", timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((out / "smoke" / "result.json").read_text(encoding="utf-8"))


def test_words_and_trees_without_training_are_measured(tmp_path):
    said, table = smoke("perturbed_masking.py", tmp_path)
    words, trees = table["words"]["reviews"], table["trees"]
    assert words.pop("sentences") > 0 and len(words) == 9 and len(trees) == 12
    assert all(0 <= figure <= 1 for figures in words.values() for figure in figures)
    assert all(0 <= one["uas"] <= one["uuas"] <= 1 for one in trees.values())
    assert trees["the word before (right-branching)"]["uas"] == 1      # the made-up trees are chains
    assert all(way in said for way in (*words, *trees))


@pytest.mark.slow
def test_a_table_of_positions_is_made_longer_and_trained_on(tmp_path):
    said, table = smoke("long_positions.py", tmp_path)
    assert len(table) == 7 and all(0 <= share <= 1 for shares in table.values() for share in shares)
    assert "hierarchical, after 500 steps" in said and "(the model itself), whole" in said


@pytest.mark.slow
def test_what_pushed_a_prediction_is_shown_and_the_training_kept(tmp_path):
    pytest.importorskip("sklearn", reason="the recipe's baseline needs scikit-learn (extra recipes)")
    tables = []
    for _ in range(2):                                               # the second time the training is there
        said, table = smoke("influence.py", tmp_path)
        tables.append(table)
        assert re.search(r"mean place of reviews of the label that was said.*: 0\.\d{3}", said)
    assert tables[0] == tables[1] and len(tables[0]) == 5
    for one in tables[0]:
        pushed = [example["contribution"] for example in one["examples"]]
        assert len(pushed) == 6 and pushed[0] == max(pushed) and pushed[-1] == min(pushed)
        assert abs(one["end"] - one["start"] - one["total"] - one["error"]) < 1e-6
