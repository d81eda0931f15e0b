"""A model of whole conversations from nothing: does it tell the next turn from another one, and what does it say?

    python recipes/dialogue.py --data DIR [--out runs/dialogue] [--smoke]

DIR/dialogue holds kdconv (talk about films, music, travel: 3 x 150 conversations of some 20 turns; the official test parts are not
needed) and lccc_toy (small talk of 2 to 8 turns). By a hash of its text each KdConv conversation is measured (3 of 10) or learned from,
four times as often as small talk. A RoFormer of 2 layers of 128 and a token a character learns every reply of a conversation in one pass
(arXiv:1911.00536, kexue.fm/archives/7718), 4,000 batches of 1,024 tokens: about 9 minutes on one core. A run that was stopped goes on.

Figures of the measured part: perplexity a character; relevance: 1,000 true next turns against replies of other conversations, area under
the ROC curve (0.5: chance), by mean log-probability, which mostly says how usual a turn is, and by mutual information with the
history, which says what it has to do with it and is the one to look at (floor 0.60, goal 0.65); Distinct-1 and -2 of 1,000 replies drawn
by top-k 5. Then three conversations begun by people and gone on with by the model, of 8 drawn replies each time the most informative.
Expected: perplexity 15.6, relevance 0.620 by log-probability and 0.878 by mutual information, Distinct-1 0.040 and -2 0.189.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
from pathlib import Path

import torch

from fishpaw.data.conversations import Conversation, read_conversations
from fishpaw.decoding.settings import Settings
from fishpaw.demo import reviews
from fishpaw.tasks.dialogue import Dialogue, small
from fishpaw.tasks.rerank import Mutual
from fishpaw.train.options import Options

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, default=os.environ.get("FISHPAW_DATA", "."), help="default: FISHPAW_DATA")
parser.add_argument("--out", type=Path, default=Path("runs/dialogue"))
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--smoke", action="store_true", help="a few steps of a smaller model on bundled reviews, a clause a turn: seconds")
arguments = parser.parse_args()
folder = arguments.data / "dialogue"
if not arguments.smoke and not folder.is_dir():
    parser.error(f"{arguments.data} holds no folder dialogue: give --data DIR")
out = arguments.out / ("smoke" if arguments.smoke else "full")                       # a trial never stands in for a run
torch.set_num_threads(1)

def talk(turns):
    """Without the blanks that LCCC has between characters."""
    return Conversation(tuple(turn.replace(" ", "") for turn in turns))

def unpacked(name):
    with gzip.open(folder / name, "rt", encoding="utf-8") as file:
        return json.load(file)

def is_measured(one):
    return int(hashlib.sha256("\n".join(one.turns).encode("utf-8")).hexdigest(), 16) % 10 < 3

if arguments.smoke:
    topics = [talk(clauses) for one in reviews(None).train if len(clauses := re.findall(r"[^，。！？]+[，。！？]?", one.text)) > 1]
    chat = []
else:
    parts = [unpacked(f"kdconv/{subject}_dev.json.gz") for subject in ("film", "music", "travel")]
    topics = [talk(line["message"] for line in one["messages"]) for part in parts for one in part]
    chat = [talk(turns) for part in unpacked("lccc_toy/toy_data.json.gz").values() for turns in part if len(turns) > 1 and all(turns)]
    chat += [talk(one.turns) for one in read_conversations(folder / "lccc_toy" / "toy_train.txt.gz", skip_bad=100)]
measured, learned = [one for one in topics if is_measured(one)], [one for one in topics if not is_measured(one)]
train = learned * 4 + chat
print(f"{len(learned)} conversations about a subject and {len(chat)} of small talk to learn from, {len(measured)} measured")

# The model sees each conversation's characters in order, [CLS] u1 [SEP] u2 [SEP] …, and who said them as segment.
sizes = {"layers": 1, "hidden_size": 32, "attention_heads": 2, "intermediate_size": 64} if arguments.smoke else \
    {"layers": 2, "hidden_size": 128, "attention_heads": 2, "intermediate_size": 512}
shape = small(1).change({**sizes, "attention_dropout": 0.0})
task = Dialogue.new(learned + chat, config=shape, max_length=256, seed=arguments.seed)
options = Options(steps=5 if arguments.smoke else 4000, token_budget=1024, learning_rate=2e-3, seed=arguments.seed, save_seconds=60)
result = task.fit(train, options=options, out=out)
print(f"{sum(one.numel() for one in task.model.parameters()):,} weights, {result.step} steps in {result.seconds:.0f} s of training")

samples = 20 if arguments.smoke else 1000
figures = task.evaluate(measured, samples=samples, max_new=8 if arguments.smoke else 32, seed=arguments.seed)
draws = Settings(sample=True, top_k=5, n=8)
conversations = []
for number, one in enumerate(measured[:: len(measured) // 3][:3]):
    turns = list(one.turns[:2])
    for _ in range(4):
        turns.append(task.reply(turns, draws, rank=Mutual(), seed=arguments.seed + 10 * number + len(turns)))
    conversations.append(turns)
    print(f"\nConversation {number + 1}, from its third turn on by the model")
    for place, turn in enumerate(turns):
        print(f"  {'AB'[place % 2]}  {turn}")
found = {**figures, "seconds": result.seconds, "conversations": conversations}
(out / "result.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(f"\nperplexity {figures['perplexity']:.2f}  relevance {figures['relevance']:.3f} by log-probability, "
      f"{figures['relevance_mutual']:.3f} by mutual information  "
      f"distinct-1 {figures['distinct_1']:.4f}  distinct-2 {figures['distinct_2']:.4f}")
