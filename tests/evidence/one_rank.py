"""What each process does in the test of several."""

from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from paretune.errors import PareError
from paretune.evidence import ExampleEntries, ExampleNorms, evidence_pass, fisher, top_k
from paretune.task import Task
from tests.tiny import tiny_rows


def main(folder: str, out: str) -> None:
    """Take evidence of every sort and save what this process ends with."""
    task = Task.from_rows(tiny_rows("single"), model=folder, heldout=0)
    model = task.load_model()
    found = fisher(model, task, samples=21, batch_size=4)
    chosen = top_k(found.scores, 1000)
    kept = {name: torch.from_numpy(indices) for name, indices in chosen.items()}
    norms, entries = ExampleNorms(21, kept), ExampleEntries(21, kept)
    evidence_pass(model, task, [norms, entries], found.indices, batch_size=4)
    values = {f"scores:{name}": scores for name, scores in found.scores.items()}
    values |= {f"chosen:{name}": indices for name, indices in kept.items()}
    values |= {f"entries:{name}": rows for name, rows in entries.values.items()}
    values |= {"losses": torch.from_numpy(found.losses), "norms": norms.values}
    rank = PartialState().process_index
    save_file(values, Path(out) / f"{PartialState().num_processes}-{rank}.safetensors")
    # One example, so of one process's share only, has a loss that is not finite.
    token = task.train[7]["input_ids"][1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    good = [index for index in range(40) if token not in task.train[index]["input_ids"]]
    try:
        fisher(model, task, indices=[7, *good], batch_size=4)
    except PareError as error:
        (Path(out) / f"{PartialState().num_processes}-{rank}.txt").write_text(str(error))
