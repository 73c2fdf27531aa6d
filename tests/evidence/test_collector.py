"""Per-example gradients against the batch-of-one loop in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from paretune.evidence.collector import Collector
from paretune.evidence.consumers import AbsSum, Dots, ExampleEntries, ExampleNorms, SquaredSum, Sum
from tests.tiny import tiny_model

AUTO = {
    "bert": AutoModelForSequenceClassification,
    "roberta": AutoModelForSequenceClassification,
    "distilbert": AutoModelForSequenceClassification,
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "qwen2": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "vit": AutoModelForImageClassification,
}


def build(kind, folder, dtype=torch.float64):
    torch.manual_seed(0)
    model = AUTO[kind].from_pretrained(tiny_model(kind, folder / kind)).to(dtype)
    return model


def batch_for(kind, B=5):
    g = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {
            "pixel_values": torch.randn(B, 3, 16, 16, generator=g, dtype=torch.float64),
            "labels": torch.randint(0, 2, (B,), generator=g),
        }
    T = 9
    ids = torch.randint(5, 60, (B, T), generator=g)
    ids[:, 3] = ids[:, 5]
    mask = torch.ones(B, T, dtype=torch.long)
    for b in range(B):
        mask[b, T - b % 4 :] = 0
    if kind in ("bert", "roberta", "distilbert"):
        lab = torch.randint(0, 2, (B,), generator=g)
    elif kind == "t5":
        lab = torch.randint(5, 60, (B, 6), generator=g)
        lab[1, 4:] = -100
    else:
        lab = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": lab}


def losses(model, batch):
    lab = batch["labels"]
    logits = model(
        **{
            k: (v.to(next(model.parameters()).dtype) if v.is_floating_point() else v)
            for k, v in batch.items()
        }
    ).logits
    if lab.ndim == 1:
        return cross_entropy(logits, lab, reduction="none")
    if not model.config.is_encoder_decoder:
        logits, lab = logits[:, :-1], lab[:, 1:]
    return cross_entropy(logits.transpose(1, 2), lab, reduction="none", ignore_index=-100).sum(1) / (
        lab != -100
    ).sum(1)


def brute(model, batch):
    out = []
    named = dict(model.named_parameters())
    model.eval()
    for i in range(len(batch["labels"])):
        l = losses(model, {k: v[i : i + 1] for k, v in batch.items()})
        g = torch.autograd.grad(l.sum(), list(named.values()), allow_unused=True)
        out.append([torch.zeros_like(p) if x is None else x for x, p in zip(g, named.values())])
    return {n: torch.stack([o[k] for o in out]) for k, n in enumerate(named)}


@pytest.mark.parametrize("kind", list(AUTO))
def test_all(kind, tmp_path):
    model = build(kind, tmp_path)
    batch = batch_for(kind)
    truth = brute(model, batch)
    named = dict(model.named_parameters())
    sq, s, ab = SquaredSum(named), Sum(named), AbsSum(named)
    u = {n: torch.randn_like(p) for n, p in named.items()}
    dots = Dots(5, u)
    norms = ExampleNorms(5, dict.fromkeys(named))
    idx = {n: torch.randperm(p.numel())[:7].sort().values for n, p in named.items()}
    ent = ExampleEntries(5, idx)
    with Collector(model, [sq, s, ab, dots, norms, ent]) as c:
        c.run(losses, batch, range(5))
    print(kind, c.slow)

    def err(a, b):
        return float(((a - b).abs().max()) / b.abs().max().clamp(min=1e-30))

    big = max(float(t.abs().max()) for t in truth.values())
    for n, t in truth.items():
        assert (sq.values[n] - (t**2).sum(0)).abs().max() < 1e-10 * big**2, n
        assert (s.values[n] - t.sum(0)).abs().max() < 1e-10 * big, n
        assert (ab.values[n] - t.abs().sum(0)).abs().max() < 1e-10 * big, n
        assert (ent.values[n] - t.flatten(1)[:, idx[n]]).abs().max() < 1e-6 * big, n
    d = torch.stack([(t * u[n]).flatten(1).sum(1) for n, t in truth.items()], 1)
    torch.testing.assert_close(dots.values, d, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms.values, sum((t**2).flatten(1).sum(1) for t in truth.values()))
