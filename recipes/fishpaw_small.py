"""fishpaw-small: a small Chinese model that fills masks, embeds sentences and writes, from open texts alone; the one that ships.

    python recipes/fishpaw_small.py --corpus runs/open_corpus [--out runs/fishpaw_small] [--size 4x256] [--tokens 28e6 12e6] [--smoke]

One RoFormer with the mask "unilm". First it is asked for hidden characters (MLM), the next one (GPT) and to go on from a beginning (UniLM),
without dropout, since nothing is read twice. Then also which two sentences belong together (contrastive): neighbours, translations,
paraphrases, and each with itself under dropout. --corpus is what recipes/open_corpus.py made. All is kept in --out: a run that was stopped
goes on. Under `OMP_NUM_THREADS=1 torchrun --nproc-per-node N` N cores do more than with N threads. recipes/small_report.py measures
what came of it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from fishpaw.config import ModelConfig
from fishpaw.data.shards import Shards
from fishpaw.model.transformer import Transformer
from fishpaw.optim.adamw import adamw
from fishpaw.tasks.objectives import Contrastive, Masked, NextToken, UniLM
from fishpaw.tasks.pretrain import Pretrain
from fishpaw.tasks.training import seeded
from fishpaw.text.vocab import Vocab
from fishpaw.text.wordpiece import WordPiece
from fishpaw.train.distributed import own_device
from fishpaw.train.launch import leads
from fishpaw.train.options import Options

MIXTURES = (
    {Masked(rate=0.2, weight=3.0): 0.8, UniLM(): 0.1, NextToken(): 0.1},
    {Contrastive(same=0.3, longest=48, weight=10.0): 0.4, Masked(rate=0.2, weight=3.0): 0.4, UniLM(): 0.1, NextToken(): 0.1},
)
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--corpus", type=Path, default=Path("runs/open_corpus"), help="what recipes/open_corpus.py made")
parser.add_argument("--out", type=Path, default=Path("runs/fishpaw_small"))
parser.add_argument("--size", default="4x256", help="layers x width")
parser.add_argument("--tokens", type=float, nargs=2, default=(28e6, 12e6), help="of all pieces that are read, at first and then")
parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
parser.add_argument("--rate", type=float, nargs=2, default=(1.5e-3, 7e-4), help="peaks of the learning rate")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--smoke", action="store_true", help="a few steps of a smaller model on the bundled reviews: seconds")
arguments = parser.parse_args()
arguments.out /= "smoke" if arguments.smoke else "."                 # a trial never stands in for a run
if arguments.smoke and leads():
    subprocess.run([sys.executable, Path(__file__).with_name("open_corpus.py"), "--smoke", "--out", arguments.out], check=True)
arguments.corpus = arguments.out / "smoke" if arguments.smoke else arguments.corpus
if not (arguments.corpus / "vocab.txt").is_file():
    parser.error(f"{arguments.corpus} holds no vocab.txt: run recipes/open_corpus.py, or give --corpus DIR")
layers, width = (1, 32) if arguments.smoke else map(int, arguments.size.split("x"))
tokenizer = WordPiece(Vocab.load(arguments.corpus / "vocab.txt"))
shape = ModelConfig(
    family="roformer", vocab_size=tokenizer.size, hidden_size=width, layers=layers, attention_heads=max(2, width // 64),
    intermediate_size=3 * width, position="rotary", mask="unilm", heads=("mlm", {"name": "pooler", "activation": "linear"}),
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
with seeded(arguments.seed):
    model = Transformer(shape)
length = 64 if arguments.smoke else 128
makers = (lambda: Pretrain(model, tokenizer, MIXTURES[0], length=length),
          lambda: Pretrain.load(arguments.out / "run" / "model", MIXTURES[1], changes={"dropout": 0.1}, length=length))  # fmt: skip

def report(record):
    """A line of the log, as it comes."""
    if record["event"] in ("step", "evaluate", "resume"):
        print(" ".join(f"{name} {value:.4g}" for name, value in record.items() if isinstance(value, (int, float))), flush=True)

for turn, (name, part) in enumerate((("run", "train"), ("second", "pairs"))):
    task, budget, rate = makers[turn](), arguments.batch * (1 + turn), arguments.rate[turn]          # more pairs a batch to be told apart
    steps = 4 if arguments.smoke else round(arguments.tokens[turn] / budget)
    task.model.to(own_device())                                      # the GPU of its number, under torchrun; else the processor
    options = Options(
        steps=steps, token_budget=512 if arguments.smoke else budget, learning_rate=rate, warmup=0.04, weight_decay=0.01,
        precision=arguments.precision, seed=arguments.seed, evaluate_every=max(2, steps // 12), log_every=max(1, steps // 400),
    )  # fmt: skip
    result = task.fit(
        Shards(arguments.corpus / part), Shards(arguments.corpus / "dev"), options=options, out=arguments.out / name, report=report,
        optimizer=lambda own, rate=rate: adamw(own, learning_rate=rate, weight_decay=0.01, betas=(0.9, 0.98)),
    )  # fmt: skip
    if leads():
        print(f"{result.step} steps, {result.seconds:.0f} s, best loss {result.best:.4f}: {arguments.out / name / 'model'}", flush=True)
