"""The processes of a distributed run, as ``torchrun`` and ``accelerate launch`` start them; their devices.

They are asked of the environment, so that nothing has to be connected to know them.
"""

import os
from typing import TYPE_CHECKING

from paretune.errors import PareError

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState


VISIBLE = "CUDA_VISIBLE_DEVICES"
_SHARDED = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}  # as accelerate has them


def rank() -> int:
    """Which process this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this is the process that writes and prints; it is where none was launched."""
    return rank() == 0


def processes() -> int:
    """How many processes there are; 1 where none was launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> "torch.device":
    """Where this process computes: its GPU, where there is one that CUDA sees, else the CPU.

    ``CUDA_VISIBLE_DEVICES=`` (none) and ``accelerate launch --cpu`` ask for the CPU.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def gpus() -> list[str]:
    """The GPUs that CUDA shows this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count() if device().type == "cuda" else 0
    named = os.environ.get(VISIBLE, "")
    return (named.split(",") if named else list(map(str, range(count))))[:count]


def has_bf16(where: "torch.device") -> bool:
    """Whether a device multiplies in bfloat16; GPUs before Ampere (T4, V100) do not. A CPU always can."""
    import torch

    return where.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def state() -> "PartialState":
    """The processes as accelerate sees them, which connects them."""
    from accelerate import PartialState

    return PartialState(cpu=device().type == "cpu")


def wait() -> None:
    """Until every process has come here."""
    if processes() > 1:
        state().wait_for_everyone()


def refuse_several(command: str) -> None:
    """Refuse to run in each process of a distributed run.

    Args:
        command: What the user has called.

    Raises:
        PareError: There are several processes.
    """
    if processes() > 1:
        raise PareError(
            f"{command} is one process, and {processes()} were launched; start it without a launcher (front, "
            "search and auto run trials side by side with --workers N or --engine ray)"
        )


def refuse_sharded() -> None:
    """Refuse a launcher that splits each weight over the processes: what is trained are parts of whole ones.

    Raises:
        PareError: ``accelerate launch`` was told to.
    """
    from accelerate.utils import parse_flag_from_env

    for variable, name in _SHARDED.items():
        if parse_flag_from_env(f"ACCELERATE_USE_{variable}"):
            raise PareError(
                f"{name} splits the weights over the processes; paretune trains parts of whole ones, whose "
                "optimiser state is small already; start with torchrun or accelerate launch --multi_gpu"
            )
