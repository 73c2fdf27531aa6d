"""What `benchmarks.step` compares: ways to train a share of a model, each made tunable as its users would."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from benchmarks.fisher import Tokens, llama
from benchmarks.machine import builtin_encoder
from paretune.anatomy import anatomy, base_digest, mark_head
from paretune.evidence import fisher
from paretune.methods.lora import fill_ranks
from paretune.methods.random import random_entries
from paretune.methods.ranking import Ranks, competing
from paretune.plan import Base, Plan, Selection
from paretune.selection import Granularity
from paretune.tuning import attach

HEAD = ("classifier.weight", "classifier.bias")
GRANULARITIES: tuple[Granularity, ...] = ("entries", "rows", "columns", "blocks")
SCORED = 32  # examples that FISH looks at
QUERY_VALUE = ("query", "value", "q_proj", "v_proj")
ALL_LINEARS = (
    *QUERY_VALUE,
    *("key", "attention.output.dense", "intermediate.dense", "output.dense"),
    *("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)


class TooSmallError(Exception):
    """A method has no size within the share."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        model: ``encoder`` (built in, a fresh head) or a size of a Llama-shaped random model, such as ``25M``.
        share: Of the model's weights that are trained.
        batch: Examples a step.
        length: Tokens an example.
        precision: ``fp32``; ``amp``: bf16 autocast over an fp32 base; ``bf16``: a bf16 base.
        checkpointing: Whether activations are recomputed.
    """

    model: str = "encoder"
    share: float = 0.005
    batch: int = 32
    length: int = 48
    precision: str = "fp32"
    checkpointing: bool = False

    def load(self) -> nn.Module:
        """The model in training mode, all of it in memory.

        A checkpoint is mapped from its file page by page; the rows of the embedding that one batch does not
        use would count for the variants that read the whole model and not for the others.
        """
        torch.manual_seed(0)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        if self.model == "encoder":
            model = AutoModelForSequenceClassification.from_pretrained(
                builtin_encoder(), num_labels=2, dtype=dtype
            )
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()
            mark_head(model, HEAD)
        else:
            model = llama(self.model, dtype)
        if self.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.to("cuda" if torch.cuda.is_available() else "cpu").train()

    def task(self, model: nn.Module, examples: int) -> Any:
        """Random tokens for the model."""
        kind = "classification" if self.model == "encoder" else "causal-lm"
        config: Any = model.config
        return Tokens(kind, examples, self.length, config.vocab_size, next(model.parameters()).device)

    def count(self, model: nn.Module) -> int:
        """Weights that the share is."""
        return int(self.share * anatomy(model).weights)

    @property
    def row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def choose_masks(case: Case, folder: Path) -> None:
    """FISH masks at every granularity, as `paretune choose --method fish` takes them, in folders of plans."""
    model = case.load().eval()
    scores = fisher(model, case.task(model, SCORED), indices=range(SCORED), batch_size=8).scores
    parts, count = anatomy(model), case.count(model)
    for granularity in GRANULARITIES:
        ranks = Ranks("blocks", "even", 0.25, granularity)
        tensors = competing(parts.body, "blocks", count, granularity)
        chosen = ranks.take({t.name: scores[t.name].clone() for t in tensors}, count, seed=0)
        selections = [
            Selection(t.name, tuple(t.shape), granularity, chosen[t.name])
            for t in tensors
            if len(chosen.get(t.name, ()))
        ]
        plan(case, model, selections).save(folder / granularity)
    gc.collect()


def plan(case: Case, model: nn.Module, selections: list[Selection]) -> Plan:
    """A plan of some selections and the head."""
    head = HEAD if case.model == "encoder" else ()
    whole = tuple(Selection(name, tuple(model.get_parameter(name).shape), "all") for name in head)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Plan(Base(case.model, base_digest(model, head), dtype), tuple(selections), head=whole)


def full(model: nn.Module, case: Case, masks: Path) -> nn.Module:
    """Every weight."""
    return model


def floor(model: nn.Module, case: Case, masks: Path) -> nn.Module:
    """Every weight frozen; the gradient still runs through all activations."""
    model.requires_grad_(False)
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    embeddings.register_forward_hook(lambda *args: args[2].requires_grad_())
    return model


def masked(granularity: str) -> Callable[[nn.Module, Case, Path], nn.Module]:
    """Ours: a FISH mask of single entries, rows, columns or blocks."""
    return lambda model, case, masks: attach(model, Plan.load(masks / granularity), check=False)


def everywhere(model: nn.Module, case: Case, masks: Path) -> nn.Module:
    """Ours: single entries drawn from every tensor of the model, embeddings and norms included."""
    selections = random_entries(anatomy(model).body, case.count(model), seed=0)
    return attach(model, plan(case, model, list(selections)), check=False)


def lora(targets: tuple[str, ...]) -> Callable[[nn.Module, Case, Path], nn.Module]:
    """LoRA (peft) at the largest count within the budget."""

    def make(model: nn.Module, case: Case, masks: Path) -> nn.Module:
        modules = linears(model, targets)
        sizes = [sum(model.get_submodule(name).weight.shape) for name in modules]  # type: ignore[arg-type]
        ranks = fill_ranks(sizes, case.count(model))
        least = min(ranks)
        if not least:
            raise TooSmallError(f"{case}: too small a share for LoRA on {len(modules)} layers")
        config = peft.LoraConfig(
            task_type="SEQ_CLS" if case.model == "encoder" else "CAUSAL_LM",
            r=least,
            lora_alpha=2 * least,
            target_modules=modules,
            rank_pattern={name: rank for name, rank in zip(modules, ranks, strict=True) if rank > least},
            lora_dropout=0.0,
        )
        return peft.get_peft_model(model, config)  # type: ignore[arg-type]

    return make


def shira(model: nn.Module, case: Case, masks: Path) -> nn.Module:
    """SHiRA (peft; sparse high-rank updates, random mask) on all linear layers, nearest count below."""
    modules = linears(model, ALL_LINEARS)
    per_rank = sum(sum(model.get_submodule(name).weight.shape) for name in modules)  # type: ignore[arg-type,misc]
    config = peft.ShiraConfig(
        task_type="SEQ_CLS" if case.model == "encoder" else "CAUSAL_LM",
        r=max(1, case.count(model) // per_rank),
        target_modules=modules,
    )
    return peft.get_peft_model(model, config)  # type: ignore[arg-type]


def linears(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the blocks' linear layers that end in one of the targets."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (".layer." in name or ".layers." in name)
        and any(name.endswith(f".{target}") for target in targets)
    ]


VARIANTS: dict[str, Callable[[nn.Module, Case, Path], nn.Module]] = {
    "floor": floor,
    **{granularity: masked(granularity) for granularity in GRANULARITIES},
    "everywhere": everywhere,
    "lora_query_value": lora(QUERY_VALUE),
    "lora_all_linears": lora(ALL_LINEARS),
    "shira": shira,
    "full": full,
}
