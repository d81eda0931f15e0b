"""What the parity tests of the families share: a model of transformers with random weights, its folder, and every comparison with ours.

A test file names its cases, CASES: name -> (class, configuration), and STD, the standard deviation of the weights: near 0 attention is
uniform and hides faults, too high it is one-hot and hides them, too. `case_of` (theirs, folder), where it has one, makes another Case.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fishpaw.config import ModelConfig
from fishpaw.model.transformer import Transformer
from fishpaw.switch import spec_name
from fishpaw.weights.family import Family
from fishpaw.weights.formats import read_folder, write_safetensors
from fishpaw.weights.load import load_model
from fishpaw.weights.names import FAMILIES
from fishpaw.weights.save import save
from fishpaw.weights.translate import export_tensors, read_config

CLOSE = 1e-5                                                       # fp32
CLOSE_GRADIENTS = 1e-9                                             # fp64
CLOSE_TURNED = 1e-5                                                # transformers' rotary tables are fp32 there, too


@dataclass
class Case:
    """Three texts of 7, 11 and 4 tokens, padded; both models answer, what padding gives is left out."""

    theirs: Any
    folder: Path
    ids: Tensor = field(init=False)
    keep: Tensor = field(init=False)
    segments: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(5)
        config = self.theirs.config
        least = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0      # they count positions by it
        self.ids = torch.randint(least, config.vocab_size, (3, 11), generator=noise)
        self.keep = torch.arange(11) < torch.tensor([[7], [11], [4]])
        if least:
            self.ids[~self.keep] = config.pad_token_id
        kinds = getattr(config, "type_vocab_size", None)
        self.segments = None if not kinds else torch.randint(0, kinds, (3, 11), generator=noise)

    def ask(self, theirs: Any = None) -> Any:
        more = {} if self.segments is None else {"token_type_ids": self.segments}
        return (theirs or self.theirs)(self.ids, attention_mask=self.keep.long(), output_hidden_states=True, **more)

    def answer(self, ours: Transformer) -> Any:
        return ours(self.ids, padding=self.keep, segments=self.segments, all_hidden=True)

    def pairs(self, theirs: Any, ours: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Theirs and ours by name; states of padding are left out."""
        found = {f"hidden {i}": pair for i, pair in enumerate(zip(theirs.hidden_states, ours.all_hidden, strict=True))}
        logits = theirs.get("prediction_logits", theirs.get("logits"))
        if logits is not None and logits.shape[:2] == self.ids.shape:
            found["logits"] = (logits, ours.logits if logits.dim() == 3 else ours.replaced)
        elif logits is not None:
            found["scores"] = (logits, ours.nsp if ours.classes is None else ours.classes)
        for name, mine in (("seq_relationship_logits", ours.nsp), ("sop_logits", ours.nsp), ("pooler_output", ours.pooled)):
            if theirs.get(name) is not None:
                found[name] = (theirs[name], mine)
        return {name: tuple(one[self.keep] if one.shape[:2] == self.ids.shape else one for one in pair) for name, pair in found.items()}

    def far(self, ours: Transformer) -> float:
        """The largest difference, in parts of the largest value where that is above 1."""
        with torch.no_grad():
            return worst(self.pairs(self.ask(), self.answer(ours)))

    def compare_gradients(self, ours: Transformer) -> None:
        """Of a random direction of all outputs, with respect to every parameter, each under the name that the table gives it; fp64."""
        theirs, family = copy.deepcopy(self.theirs).double(), FAMILIES[ours.config.family]
        pairs = self.pairs(self.ask(theirs), self.answer(ours))
        assert worst(pairs) <= CLOSE
        noise = torch.Generator().manual_seed(7)
        directions = {key: torch.randn(pair[0].shape, generator=noise, dtype=torch.float64) for key, pair in pairs.items()}
        for side in (0, 1):
            sum((pairs[key][side] * direction).sum() for key, direction in directions.items()).backward()
        mapped = export_tensors({key: value.grad for key, value in ours.named_parameters()}, ours.config, family)
        assert mapped is not None
        wrong, seen = [], 0
        turned = any("rotary" in spec_name(spec) for spec in ours.config.turns("position"))
        close = CLOSE_TURNED if turned else CLOSE_GRADIENTS
        for key, value in theirs.named_parameters():
            if value.grad is None:
                continue
            mine = mapped.pop(key if key in mapped else family.prefix + key)
            scale = max(1.0, value.grad.abs().max().item())
            wrong += [key] if (value.grad - mine).abs().max() > close * scale else []
            seen += bool(value.grad.abs().max() > 10 * close)
        assert not wrong, f"gradients of {wrong} differ"
        assert seen >= 0.8 * len(list(theirs.parameters())), "too many gradients are nearly 0: the comparison would be blind"
        assert all(value is None or not value.any() for name, value in mapped.items() if name != family.sines)

    def spoiled(self, folder: Path, spoil: Callable[[dict[str, Tensor]], None]) -> Path:
        """The same folder with other tensors."""
        tensors = dict(read_folder(self.folder))
        spoil(tensors)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes((self.folder / "config.json").read_bytes())
        write_safetensors(tensors, folder / "model.safetensors")
        return folder

    def returns(self, folder: Path) -> None:
        """What we save of it, transformers opens without a word, with the same outputs bit for bit and the same fields that we know."""
        save(load_model(self.folder), folder)
        kind = type(self.theirs)
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert named["model_type"] == self.theirs.config.model_type, "saved in our own layout"
        back, said = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), said
        with torch.no_grad():
            first, second = self.ask(), self.ask(back.eval())
        for one, other in zip(first.hidden_states, second.hidden_states, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(first[0], second[0])
        before, after = self.theirs.config.to_dict(), back.config.to_dict()
        family = FAMILIES[load_model(folder).config.family]
        for key in family.config:
            assert after.get(key) == before.get(key) or key in ("pad_token_id", "embedding_size", "n_inner"), key


def worst(pairs: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The largest difference of theirs and ours, in parts of theirs' largest value where that is above 1."""
    for name, (theirs, ours) in pairs.items():
        assert theirs.shape == ours.shape, name
        assert theirs.detach().std() > 0.05, f"{name} is nearly constant: the comparison would be blind"
    return max((theirs - ours).abs().max().item() / max(1.0, theirs.abs().max().item()) for theirs, ours in pairs.values())


SIZES = {"vocab_size": 23, "hidden_size": 12, "layers": 2, "attention_heads": 3, "intermediate_size": 17, "max_positions": 13,
         "embedding_size": 5, "head_size": 4, "key_value_heads": 3, "pad_id": 0, "encoder.layers": 3}  # fmt: skip


def _tiny(family: Family, **values: Any) -> ModelConfig:
    sizes = {theirs: SIZES[ours] for theirs, (ours, _) in family.config.items() if ours in SIZES}
    config = read_config({**sizes, **values}, family)
    options = {name: options(sizes) if callable(options) else options for name, _, options in reversed(family.heads)}
    if "classifier" in options:
        options["classifier"] = {"labels": ["no", "yes"]}
    heads = tuple({"name": name, **options[name]} for name in dict.fromkeys(name for name, _, _ in family.heads))
    return config.change({"heads": heads})


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModelConfig]:
    """family, fields of theirs -> the configuration of a tiny model of it, with every head that it may have."""
    return _tiny


@pytest.fixture(scope="session")
def case_type() -> type[Case]:
    """Case, to derive from."""
    return Case


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """name -> the Case of the module's CASES, made once."""
    import transformers

    made: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in made:
            kind, values = request.module.CASES[name]
            built = getattr(transformers, kind)
            torch.manual_seed(len(name))
            model = built(built.config_class(**values)).eval()
            for parameter in model.parameters():
                if parameter.requires_grad:                        # RoFormer's table of sines is a frozen parameter
                    torch.nn.init.normal_(parameter, std=request.module.STD)
            folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
            model.save_pretrained(folder)
            made[name] = getattr(request.module, "case_of", Case)(model, folder)
        return made[name]

    return get


@pytest.fixture(scope="session")
def bert4torch() -> Callable[[str], Any]:
    """A module of bert4torch by its name there; skips where there is none. Release 0.6.2 imports torchvision, undeclared, for models that
    nobody asked for: empty modules stand in."""
    if importlib.util.find_spec("bert4torch") is None:
        pytest.skip("bert4torch is not installed")
    names = [] if importlib.util.find_spec("torchvision") else [f"torchvision{rest}" for rest in _VISION]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")                            # torch.jit.script
        for name in names:
            module = ModuleType(name)
            module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
            patch.setitem(sys.modules, name, module)
            if "." in name:
                setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
        importlib.import_module("bert4torch.models")
    return lambda name: importlib.import_module(f"bert4torch.{name}")


_VISION = ("", ".transforms", ".transforms.v2", ".transforms.v2.functional")
