"""A LoRA-only delta as an adapter of peft."""

import json
import re
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save as save_tensors

from paretune.delta.contents import Contents
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.plan import Addition

_TASK_TYPES = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
}
_ALWAYS_SAVED = ("classifier", "score")  # what peft saves whole for SEQ_CLS, asked or not


def export_peft(delta: Contents, folder: str | Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    ``PeftModel.from_pretrained(base, folder)`` then gives the logits of the base with the delta applied. The
    head goes into ``modules_to_save``. Dropout, which only matters for further training, is kept where all
    modules share one, else it is 0.

    Args:
        delta: A delta whose only changes to the base model are LoRA modules.
        folder: Where to; made if absent.

    Raises:
        PareError: The delta holds something that a LoRA adapter of peft cannot; the message names it.
        OSError: The folder cannot be written.
    """
    _check_expressible(delta)
    folder = Path(folder)
    tensors = {f"base_model.model.{name}": delta.tensors[name].values for name in delta.head}
    for key, values in delta.added.items():
        _, module, tensor = key.split(":", 2)
        tensors[f"base_model.model.{module}.{tensor}"] = values
    # The configuration comes last: without it a half-written folder is no adapter.
    write_atomic(folder / "adapter_model.safetensors", save_tensors(tensors, metadata={"format": "pt"}))
    write_atomic(
        folder / "adapter_config.json", json.dumps(_configuration(delta), indent=2, sort_keys=True) + "\n"
    )


def _check_expressible(delta: Contents) -> None:
    way_out = "ship the delta itself, or a merged checkpoint (delta.load_model(merge=True).save_pretrained)"
    selected = [name for name in delta.tensors if name not in delta.head]
    if selected:
        raise PareError(
            f"a peft adapter cannot hold selected weights of {selected[0]} ({len(selected)} such): {way_out}"
        )
    other = next((a for a in delta.additions if a.strategy != "lora"), None)
    if other:
        raise PareError(
            f"a LoRA adapter of peft cannot hold the {other.strategy} on {other.module}: {way_out}"
        )
    if not delta.additions:
        raise PareError(f"there is no LoRA in this delta, so peft has no adapter for it: {way_out}")
    outside = next((name for name in delta.head if "." not in name), None)
    if outside:
        raise PareError(f"peft saves whole modules, and {outside} belongs to none but the model: {way_out}")
    saved = {*_head_modules(delta), *(_ALWAYS_SAVED if _task_type(delta) == "SEQ_CLS" else ())}
    for addition in delta.additions:
        if any(f".{path}." in f".{addition.module}." for path in saved):
            raise PareError(f"peft saves {addition.module} whole and puts no LoRA on it: {way_out}")


def _configuration(delta: Contents) -> dict[str, Any]:
    """The configuration, with the rank and alpha of every module spelled out where they differ."""
    ranks = {addition.module: addition.size for addition in delta.additions}
    alphas = {addition.module: _alpha(addition) for addition in delta.additions}
    dropouts = {float(addition.settings.get("dropout", 0.0)) for addition in delta.additions}
    rank, alpha = max(ranks.values()), max(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft takes fractions too
        lora_dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
        target_modules="|".join(re.escape(module) for module in sorted(ranks)),
        # peft matches a pattern at the end of a path; the anchor makes each fit its own module alone.
        rank_pattern={f"^{re.escape(module)}": r for module, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(module)}": a for module, a in alphas.items() if a != alpha},
        modules_to_save=_head_modules(delta) or None,
        inference_mode=True,
        base_model_name_or_path=delta.base.model,
        task_type=_task_type(delta),
    )
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }


def _task_type(delta: Contents) -> str | None:
    return _TASK_TYPES.get(str(delta.task.get("kind")))


def _alpha(addition: Addition) -> float:
    """Numerator of the scale; 2 r where the addition does not say, as the lora strategy has it."""
    alpha = addition.settings.get("alpha")
    return 2 * addition.size if alpha is None else alpha


def _head_modules(delta: Contents) -> list[str]:
    """Paths of the modules that hold the head.

    Inside a module that peft saves whole anyhow, that module stands for its parts: one wrapped inside the
    other would not load.
    """
    modules = {name.rpartition(".")[0] for name in delta.head}
    return sorted({first if (first := path.split(".")[0]) in _ALWAYS_SAVED else path for path in modules})
