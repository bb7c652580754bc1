"""Begin a run from an exported reader, enlarged: `python -m training.grow FOLDER [config.toml]`.

The new parts change nothing at first: an inserted layer is a copy of the one before it that does not write yet, and the
new units of an MLP read at random and write nothing. The configuration's `[shape]` has the new sizes; its `[grow]` says
after which layer of the old reader layers are inserted (`behind`), and how many (`layers`).
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.paths import paths
from training.train import CONFIG, Run, read_config

State = dict[str, Tensor]
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")
_WRITES = ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight")
NOISE = 0.3  # in a copied query matrix, as a share of its deviation: heads that begin equal would stay equal


def deeper(state: State, behind: int, layers: int, generator: torch.Generator) -> State:
    """Insert `layers` layers after layer `behind`."""
    grown = State()
    for name, weight in state.items():
        found = _LAYER.fullmatch(name)
        layer = int(found[1]) if found else -1
        grown[name if layer <= behind else f"model.layers.{layer + layers}.{found[2]}" if found else name] = weight
        if found and layer == behind:
            for new in range(behind + 1, behind + 1 + layers):
                grown[f"model.layers.{new}.{found[2]}"] = _copied(found[2], weight, generator)
    return grown


def _copied(part: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    if part in _WRITES:
        return torch.zeros_like(weight)
    if part == "self_attn.q_proj.weight":
        return weight + NOISE * weight.std() * torch.randn(weight.shape, generator=generator)
    return weight.clone()


def wider(state: State, mlp: int, generator: torch.Generator) -> State:
    """Widen the MLPs to `mlp` units."""
    return {name: _widened(name, weight, mlp, generator) for name, weight in state.items()}


def _widened(name: str, weight: Tensor, mlp: int, generator: torch.Generator) -> Tensor:
    if name.endswith("down_proj.weight"):
        return torch.nn.functional.pad(weight, (0, mlp - weight.shape[1]))
    if name.endswith(("gate_proj.weight", "up_proj.weight")):
        new = weight.std() * torch.randn(mlp - len(weight), weight.shape[1], generator=generator)
        return torch.cat([weight, new])
    return weight


def main(folder: Path, config_file: Path = CONFIG) -> None:
    """Write the checkpoint of step 0 and the tokenizer of `folder` to the folder that the configuration trains in."""
    config = read_config(config_file)
    target = Path(config["folder"])
    shutil.copytree(folder, target / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    run, generator = Run(config), torch.Generator().manual_seed(config["seed"])
    if run.file.exists():
        raise FileExistsError(f"{run.file} is the checkpoint of a run; move it away to begin another one")
    state = load_file(folder / "model.safetensors")
    grow = config["grow"]
    state = wider(deeper(state, grow["behind"], grow["layers"], generator), config["shape"]["mlp"], generator)
    run.reader.load_state_dict(state)
    run.average = {name: weight.detach().clone() for name, weight in run.reader.named_parameters()}
    run.stage = len(config["stages"]) - 1
    run.save()


if __name__ == "__main__":
    main(*paths(__doc__, least=1))
