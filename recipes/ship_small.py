"""Turn a finished fishpaw-small into the folder that ships: fp16, shards of at most 4 MiB, and a card of what was measured.

    python recipes/ship_small.py [--run runs/fishpaw_small] [--report runs/small_report] [--corpus runs/open_corpus]
                                 [--out src/fishpaw/pretrained/fishpaw-small]

--run is recipes/fishpaw_small.py's, --report recipes/small_report.py's. Every figure of the card is read from their logs. The model ships
with the mask "full": it reads both ways; mask="unilm" lets it write on.
"""

import argparse
import json
from pathlib import Path

import torch

from fishpaw.data.shards import Shards
from fishpaw.weights.load import load
from fishpaw.weights.save import save

SOURCES = """| texts | licence |
|---|---|
| Chinese statutes and judicial interpretations | not copyrightable (Copyright Law of the PRC, article 5) |
| Microsoft Visual Studio documentation, zh-cn; React documentation, zh | CC BY 4.0 |
| TiDB documentation, zh; DRCD | CC BY-SA 3.0 |
| Dive into Deep Learning, zh; OI-wiki; CMRC 2018 | CC BY-SA 4.0 |
| classical and modern Chinese in parallel; Chinese poetry; LCCC (sample); SanWen; FinRE; bert4torch's similar sentences | MIT |
| CSL abstracts; Egret forum; FewFC; SimBERT's sample | Apache-2.0, or as its LICENSE says |"""
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/fishpaw_small"))
parser.add_argument("--report", type=Path, default=Path("runs/small_report"))
parser.add_argument("--corpus", type=Path, default=Path("runs/open_corpus"))
parser.add_argument("--out", type=Path, default=Path("src/fishpaw/pretrained/fishpaw-small"))
arguments = parser.parse_args()
for needed in (arguments.run / "second" / "model", arguments.report / "result.json", arguments.corpus / "train"):
    if not needed.exists():
        parser.error(f"{needed} is missing: run the recipe that makes it first")
model, tokenizer = load(arguments.run / "second" / "model", mask="full")
save(model, arguments.out, tokenizer, dtype=torch.float16, shard_bytes=4 << 20)

def records(part, event):
    """Of a run's log."""
    lines = (arguments.run / part / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]

def row(*cells):
    """Of a table."""
    return "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"

ends = {part: records(part, "evaluate") for part in ("run", "second")}
begun = {part: records(part, "start")[0] for part in ends}
short = [f"stage {at} was stopped at step {ends[part][-1]['step']:,} of {begun[part]['steps']:,}" for at, part in enumerate(ends, 1)
         if ends[part][-1]["step"] < begun[part]["steps"]]
read = sum(ends[part][-1]["epoch"] * begun[part]["tokens"] for part in ends)
hours = sum(ends[part][-1]["seconds"] for part in ends) / 3600
curve = [row("stage", "step", "loss", "masked accuracy", "next-character accuracy", "contrastive accuracy"), row(*["---"] * 6)]
for part, name in (("run", 1), ("second", 2)):
    for one in ends[part]:
        shares = [one.get(f"{kind}_accuracy", "") for kind in ("masked", "nexttoken", "contrastive")]
        curve.append(row(name, one["step"], one["loss"], *shares))
tables = []
report = json.loads((arguments.report / "result.json").read_text(encoding="utf-8"))
for part, names in ((part, names) for part, names in report.items() if part != "of"):
    columns = list(dict.fromkeys(key for figures in names.values() for key in figures))
    tables += [f"\n### {part}\n", row("", *columns), row("---", *["---"] * len(columns))]
    tables += [row(name, *(figures.get(column, "") for column in columns)) for name, figures in names.items()]
config, size, began = model.config, sum(one.numel() for one in model.parameters()), records("run", "start")[0]
held = Shards(arguments.corpus / "train").tokens
card = f"""---
language: zh
license: apache-2.0
---
# fishpaw-small

A RoFormer of {config.layers} layers, {config.hidden_size} wide, {size / 1e6:.1f} million parameters,
{tokenizer.size:,} characters. It fills masks, makes vectors of sentences (its pooler, or the mean of its states), and goes on with texts
(`mask="unilm"`). It is small and read little: a start for one's own data and a model to try things with, no oracle.

一个 {config.layers} 层、宽 {config.hidden_size} 的 RoFormer，按字切分。会填空，会作句向量，也能续写（`mask="unilm"`）。
它很小，读得也少：适合作为自己数据的起点，或用来做试验，不适合当作知识来源。

## Data

{held / 1e6:.1f} million characters of open texts, {read / 1e6:.1f} million read in all; made by `recipes/open_corpus.py`,
trained by `recipes/fishpaw_small.py`. A fiftieth of the documents was kept apart.

{SOURCES}

Weights: Apache-2.0. The texts are old and new, legal, technical and literary; what is usual in them the model takes for usual.

## Cost

{hours:.1f} hours of a {began["device"]} ({began["threads"]} cores, shared with other work){"".join(f"; {one}" for one in short)}.

## Learning, on unseen documents

{chr(10).join(curve)}

## Measured

By `recipes/small_report.py` on texts that it never read: fill: share of hidden characters found; write: perplexity a character; similar:
Spearman's correlation or area under the curve; accuracy on reviews: probe: of a linear classifier on the frozen model's vectors; tune: of
the fine-tuned model; adapt: the same after it has read the training reviews without labels. What isn't here hasn't been measured.
{chr(10).join(tables)}
"""
(arguments.out / "README.md").write_text(card, encoding="utf-8")
size = sum(path.stat().st_size for path in arguments.out.iterdir())
print(f"{arguments.out}: {size / 1e6:.1f} MB, {read / 1e6:.1f} million characters read in {hours:.2f} h")
