"""A LoRA-only delta as an adapter of peft."""

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace

from peft import LoraConfig
from safetensors.torch import save as save_tensors
from torch import nn

from paretune.delta.contents import Contents
from paretune.errors import PareError
from paretune.files import write_atomic
from paretune.plan import Addition

try:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
except ImportError:  # a peft from before it converted anything
    convert_peft_config_for_transformers = None  # type: ignore[assignment]  # so that it can be asked

_TASK_TYPES = {
    "classification": "SEQ_CLS",
    "regression": "SEQ_CLS",
    "causal-lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
}
_WAY_OUT = "ship the delta itself, or a merged checkpoint (delta.load_model(merge=True).save_pretrained)"
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
    config = _configuration(delta)
    _check_targets(config, delta)
    # The configuration comes last: without it a half-written folder is no adapter.
    write_atomic(folder / "adapter_model.safetensors", save_tensors(tensors, metadata={"format": "pt"}))
    listed = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()
    }
    write_atomic(folder / "adapter_config.json", json.dumps(listed, indent=2, sort_keys=True) + "\n")


def _check_expressible(delta: Contents) -> None:
    selected = [name for name in delta.tensors if name not in delta.head]
    if selected:
        raise PareError(
            f"a peft adapter cannot hold selected weights of {selected[0]} ({len(selected)} such): {_WAY_OUT}"
        )
    other = next((a for a in delta.additions if a.strategy != "lora"), None)
    if other:
        raise PareError(
            f"a LoRA adapter of peft cannot hold the {other.strategy} on {other.module}: {_WAY_OUT}"
        )
    if not delta.additions:
        raise PareError(f"there is no LoRA in this delta, so peft has no adapter for it: {_WAY_OUT}")
    outside = next((name for name in delta.head if "." not in name), None)
    if outside:
        raise PareError(f"peft saves whole modules, and {outside} belongs to none but the model: {_WAY_OUT}")
    saved = {*_head_modules(delta), *(_ALWAYS_SAVED if _task_type(delta) == "SEQ_CLS" else ())}
    for addition in delta.additions:
        if any(f".{path}." in f".{addition.module}." for path in saved):
            raise PareError(f"peft saves {addition.module} whole and puts no LoRA on it: {_WAY_OUT}")


def _check_targets(config: LoraConfig, delta: Contents) -> None:
    """Refuse targets that peft would take for others when it reads them.

    Of some families with experts it takes names such as ``down_proj`` for those of adapters made before
    transformers 5, and puts them on the experts instead of the layer that the name is of.
    """
    if convert_peft_config_for_transformers is None:
        return
    model = nn.Module()
    for addition in delta.additions:
        module = model
        for name in addition.module.split("."):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
    model.config = SimpleNamespace(model_type=delta.info.get("model_type"))  # type: ignore[assignment]
    read = copy.deepcopy(config)
    try:
        convert_peft_config_for_transformers(read, model, None)
    except ValueError as error:
        raise PareError(f"peft would not read these targets ({error}): {_WAY_OUT}") from error
    taken = sorted(set(read.target_parameters or ()))
    if taken:
        raise PareError(f"peft would put what is on other layers on {taken[0]} of the experts: {_WAY_OUT}")


def _configuration(delta: Contents) -> LoraConfig:
    """The configuration, with the rank and alpha of every module spelled out where they differ."""
    ranks = {addition.module: addition.size for addition in delta.additions}
    alphas = {addition.module: _alpha(addition) for addition in delta.additions}
    dropouts = {float(addition.settings.get("dropout", 0.0)) for addition in delta.additions}
    rank, alpha = max(ranks.values()), max(alphas.values())
    return LoraConfig(
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
