"""Load what a task needs of a checkpoint: its configuration, its tokenizer, and the model with its head."""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from paretune.anatomy import mark_head
from paretune.errors import PareError
from paretune.task.fields import Family
from paretune.task.kinds import find_kind

# Families whose positions start after the padding token's id, as in RoBERTa.
OFFSET_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
RELATIVE_POSITIONS = frozenset({"longt5", "mt5", "t5", "umt5"})


def load_config(model_id: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The configuration of a checkpoint in a folder or on the Hub.

    Raises:
        PareError: The folder or the model does not exist, holds no configuration, needs code of its own that
            is not trusted, has quantised weights, or the Hub cannot be reached.
    """
    _check_folder(model_id)
    with _loading(model_id, "configuration"):
        config = AutoConfig.from_pretrained(model_id, revision=revision, trust_remote_code=trust_remote_code)
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, Mapping) else ""
        raise PareError(
            f"{model_id}: its weights are quantised ({method or 'quantization_config'} in config.json), and "
            "single ones of them cannot be trained; give the model that it was made from, with "
            "--precision bf16 to spare memory"
        )
    return config


def load_tokenizer(
    model_id: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; where it has no padding token, its end token pads.

    Raises:
        PareError: There is none, or it has neither a padding nor an end token.
    """
    with _loading(model_id, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            model_id, revision=revision, trust_remote_code=trust_remote_code
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise PareError(
                f"{model_id}: the tokenizer has neither a padding nor an end token; "
                "set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_from_spec(
    model_id: str | Path,
    spec: Mapping[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a checkpoint for the task that a `Task.spec()` describes.

    Parameters that the checkpoint does not hold (or holds in another shape, as a head for other classes) are
    initialised from the seed, whatever the caller's random state, which is left as it was, and remembered by
    `paretune.anatomy.mark_head`. The spec itself is remembered as `model.paretune_task`.

    Args:
        model_id: A folder or a name on the Hub.
        spec: What `Task.spec()` returned.
        seed: Seed of the head's weights.
        dtype: Of all weights.
        attn_implementation: As in `from_pretrained`; None takes the model's default.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        PareError: The model cannot be loaded or cannot do the task.
    """
    model_id = str(model_id)
    kind = find_kind(spec["kind"])
    revision = spec.get("revision")
    config = load_config(model_id, revision, trust_remote_code)
    _set_labels(config, spec)
    options: dict[str, Any] = (
        {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    )
    with _loading(model_id, f"model for {kind.name}"), _quiet(), _seeded(seed):
        model, info = kind.auto.from_pretrained(
            model_id,
            config=config,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    _check_mismatched(model_id, model, mismatched)
    mark_head(model, _new_parameters(model, {*info["missing_keys"], *mismatched}))
    # Only now: given to the constructor, it would silence the gradient of the padding token's embedding,
    # which for models without one is the end token's.
    model.config.get_text_config().pad_token_id = spec["pad_token_id"]
    model.paretune_task = dict(spec)
    return model.eval()


def family(config: PretrainedConfig) -> Family:
    """Whether a model encodes, decodes, or does one after the other."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    generates = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    fills = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return "decoder" if remote or (generates and not fills) else "encoder"


def max_positions(config: PretrainedConfig) -> int | None:
    """The most tokens a model has positions for, or None where there is no such limit.

    RoBERTa and its kin count positions from the padding token's id on, so theirs are fewer than the
    configuration says; T5's positions are relative.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if text.model_type in RELATIVE_POSITIONS or not isinstance(limit, int) or limit <= 0:
        return None
    if text.model_type in OFFSET_POSITIONS:
        limit -= (text.pad_token_id or 0) + 1
    return limit


def has_token_types(config: PretrainedConfig) -> bool:
    """Whether the model has an embedding for each text of a pair."""
    return (getattr(config, "type_vocab_size", 0) or 0) >= 2


def _check_folder(model_id: str) -> None:
    """Say early and plainly what is wrong with a path.

    Raises:
        PareError: It is a file, looks like a folder that does not exist, or holds no configuration.
    """
    path = Path(model_id)
    if path.is_file():
        raise PareError(f"{model_id}: this is a file; give the folder that holds the model's config.json")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PareError(
                f"{model_id}: the folder holds no config.json; give one that save_pretrained wrote"
            )
    elif (
        path.is_absolute()
        or model_id.startswith((".", "~"))
        or len(path.parts) > 2
        or (len(path.parts) == 2 and path.parent.is_dir())
    ):
        raise PareError(f"{model_id}: no such folder; give a model's folder or its name on the Hub")


@contextlib.contextmanager
def _loading(model_id: str, what: str) -> Iterator[None]:
    """Say what could not be loaded and why."""
    try:
        yield
    except (OSError, ValueError, ImportError, safetensors.SafetensorError) as error:
        raise PareError(_reason(model_id, what, error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loader from reporting the new head as if it were a mishap, and from drawing bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _reason(model_id: str, what: str, error: Exception) -> str:
    """What went wrong and the way out."""
    said = str(error)
    if "trust_remote_code" in said:
        return (
            f"{model_id}: this model comes with code of its own; read it, and give trust_remote_code=True "
            "if you trust it"
        )
    if "couldn't connect" in said:
        return (
            f"{model_id}: there is no such folder, and the Hub cannot be reached for a model of that name; "
            "check the connection, or give the folder of a model"
        )
    return f"{model_id}: the {what} cannot be loaded: {said}"


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's generator, and put its state back after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _set_labels(config: PretrainedConfig, spec: Mapping[str, Any]) -> None:
    """Size the head for the task and name its outputs."""
    if spec["kind"] == "regression":
        config.num_labels = 1
        config.problem_type = "regression"
    elif spec["kind"] == "classification":
        config.id2label = dict(enumerate(spec["labels"]))
        config.label2id = {name: number for number, name in enumerate(spec["labels"])}
        config.problem_type = "single_label_classification"


def _new_parameters(model: nn.Module, missing: Collection[str]) -> list[str]:
    """The parameters that were not loaded under any of their names (a tied one has several)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [aliases[0] for aliases in names.values() if all(name in missing for name in aliases)]


def _check_mismatched(model_id: str, model: PreTrainedModel, mismatched: Collection[str]) -> None:
    """A head may have another shape than the task's; a body may not.

    Raises:
        PareError: A pretrained tensor has another shape than the configuration says.
    """
    inside = f"{model.base_model_prefix}."
    broken = sorted(name for name in mismatched if name.startswith(inside))
    if broken:
        raise PareError(
            f"{model_id}: {broken[0]} has another shape in the checkpoint than in its config.json; "
            "the folder mixes two models: fetch it again"
        )
