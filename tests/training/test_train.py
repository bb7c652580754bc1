"""The small reader's training: a few updates, a log line, a checkpoint that is resumed, and an export."""

import json
from pathlib import Path

import pytest

from training import train
from training.export import export
from training.train import CONFIG, read_config

SMALLEST = {"rows": 1, "context": 150, "asked": 96, "plain": 8, "chunks": 3, "pass": 2.0}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    text = f"""
seed = 1
folder = "{tmp_path}"
vocab = 600
present = 1.0
tokenizer_worlds = 5
selection_layers = [1, 3]
[heads]
answer = [[5, 0]]
source = [[2, 2]]
[shape]
hidden = 192
layers = 6
heads = 6
kv_heads = 3
head_dim = 32
mlp = 16
theta = 1e6
[optimiser]
batches = 1
average = 10
bfloat16 = false
rate = 1e-3
warmup = 2
total = 2
decay = 0.4
weight_decay = 0.0
least = 0.05
rest_weight = 0.5
plain_weight = 0.3
point_weight = 0.4
[[stages]]
{chr(10).join(f"{key} = {value}" for key, value in SMALLEST.items())}
"""
    (tmp_path / "config.toml").write_text(text)
    return tmp_path / "config.toml"


def test_the_shipped_configuration_names_what_this_one_does(config: Path) -> None:
    short, shipped = read_config(config), read_config(CONFIG)
    assert set(short) <= set(shipped) and set(short["optimiser"]) == set(shipped["optimiser"])


def test_a_run_is_logged_resumed_and_exported(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "EVERY", 1)
    train.main(config)
    lines = [json.loads(line) for line in (config.parent / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and {"answer", "source"} <= set(lines[-1]["exact"])
    config.write_text(config.read_text().replace("total = 2", "total = 3"))
    train.main(config)
    lines = [json.loads(line) for line in (config.parent / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    export(read_config(config), config.parent / "exported")
    assert (config.parent / "exported" / "model.safetensors").exists()
