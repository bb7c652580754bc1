"""A room imports only from floors below it, and what is heavy or optional is imported in its own room only."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.house.imports import Tree, circles

ROOT = Path(__file__).parents[2]

FLOORS = {
    "samkv_rag.types": 0,
    "samkv_rag.errors": 0,
    "samkv_kernels": 1,
    "samkv_rag.options": 1,
    "samkv_rag.paths": 1,
    "samkv_rag.reader": 1,
    "samkv_rag.model": 2,
    "samkv_rag.store": 2,
    "samkv_rag.prompt": 2,
    "samkv_rag.methods": 3,
    "samkv_rag.accounting": 4,
    "samkv_rag.adding": 4,
    "samkv_rag.answering": 4,
    "samkv_rag.batch": 4,
    "samkv_rag.calls": 4,
    "samkv_rag.engine": 4,
    "samkv_rag.engines": 4,
    "samkv_rag.flops": 4,
    "samkv_rag.ingest": 4,
    "samkv_rag.library": 4,
    "samkv_rag.parity": 4,
    "samkv_rag.stream": 4,
    "samkv_rag.threads": 4,
    "samkv_rag.turns": 4,
    "samkv_rag": 5,  # the public names alone: every other module of the package has a room of its own
    "samkv_rag.cli": 5,
    "samkv_rag.demo": 5,
    "samkv_rag.eval": 5,
    "samkv_rag.explain": 5,
    "samkv_rag.profiling": 5,
    "samkv_rag.retrieval": 5,
    "langchain_samkv": 6,
    "llama_index.llms.samkv": 6,
    "training": 6,
}
# On these floors rooms may call their neighbours (never in a circle). Below, a room does not know its neighbours.
NEIGHBOURLY = {4, 5, 6}

# Outside packages that only some rooms may import.
ONLY_IN = {
    "transformers": {"samkv_rag.model", "training"},
    "tokenizers": {"samkv_rag.model", "training"},
    "typer": {"samkv_rag.cli"},
    "rich": {"samkv_rag.cli"},
    "jinja2": {"samkv_rag.explain"},
    "faiss": {"samkv_rag.retrieval"},
    "sklearn": {"samkv_rag.retrieval"},
    "llama_index": {"samkv_rag.retrieval", "samkv_rag.cli", "llama_index.llms.samkv"},
    "langchain_core": {"langchain_samkv"},
    "triton": {"samkv_kernels"},
    "numba": {"samkv_kernels"},
}
KERNELS_KNOW = {"torch", "triton", "numba", "samkv_kernels", *sys.stdlib_module_names}
COMPILED_BY_NUMBA = "samkv_kernels.cpu."
"""Modules that may use NumPy, too: Numba compiles for its arrays."""


def room_of(module: str) -> str | None:
    """The room of our module, or None for a module that is not ours."""
    if module == "samkv_rag":
        return module
    rooms = [room for room in FLOORS if room != "samkv_rag" and (module + ".").startswith(room + ".")]
    return max(rooms, key=len, default=None)


def complaints(tree: Tree) -> list[str]:
    found = [f"{module} has no floor: give its room a line in FLOORS" for module in tree.modules if not room_of(module)]
    between: dict[str, set[str]] = {}
    for item in tree.imports:
        room, other = room_of(item.module), room_of(item.target)
        if room is None:
            continue
        place, outside = f"{item.module}:{item.line} imports {item.target}", item.target.partition(".")[0]
        known = KERNELS_KNOW | ({"numpy"} if item.module.startswith(COMPILED_BY_NUMBA) else set())
        if room == "samkv_kernels" and outside not in known:
            found.append(f"{place}: kernels know torch and nothing else")
        if other is None:
            if room not in ONLY_IN.get(outside, {room}):
                found.append(f"{place}: only for {', '.join(sorted(ONLY_IN[outside]))}")
        elif room != other:
            if FLOORS[other] > FLOORS[room]:
                found.append(f"{place}: upward")
            elif FLOORS[other] == FLOORS[room] and FLOORS[room] not in NEIGHBOURLY:
                found.append(f"{place}: a neighbour on floor {FLOORS[room]}")
            if not item.typing_only:
                between.setdefault(room, set()).add(other)
    found += [f"circle of modules: {' '.join(circle)}" for circle in tree.circles()]
    # The public names are looked up lazily, so asking the package for one closes no circle.
    rooms = {room: others - {"samkv_rag"} for room, others in between.items() if room != "samkv_rag"}
    return found + [f"circle of rooms: {' '.join(circle)}" for circle in circles(rooms)]


def house(root: Path) -> Tree:
    return Tree.read((root, "samkv_rag"), (root, "training"), (root / "kernels", "."), (root / "integrations", "."))


def test_the_floors_hold() -> None:
    tree = house(ROOT)
    assert {"samkv_rag.types", "samkv_kernels", "langchain_samkv", "llama_index.llms.samkv"} <= set(tree.modules)
    assert complaints(tree) == []


BAD_TREE = {
    "samkv_rag/types.py": "from .engine import run",
    "samkv_rag/engine.py": "import typer\nfrom samkv_rag.methods import a",
    "samkv_rag/store/__init__.py": "from samkv_rag.model.cache import Cache",
    "samkv_rag/model/__init__.py": "",
    "samkv_rag/model/cache.py": "import transformers",
    "samkv_rag/methods/__init__.py": "",
    "samkv_rag/methods/a.py": "def late():\n    from samkv_rag.methods import b\nimport transformers.cache_utils",
    "samkv_rag/methods/b.py": "if True:\n    from .a import late",
    "samkv_rag/ingest.py": "from samkv_rag.parity import check",
    "samkv_rag/parity.py": "from samkv_rag import ingest",
    "samkv_rag/cellar.py": "",
    "samkv_rag/cli/ask.py": "from samkv_rag.retrieval.index import search",
    "samkv_rag/cli/text.py": "",
    "samkv_rag/retrieval/index.py": "",
    "samkv_rag/retrieval/show.py": "import samkv_rag.cli.text",
    "kernels/samkv_kernels/__init__.py": "import numpy",
    "kernels/samkv_kernels/cpu/packed.py": "import numpy, scipy",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_bad_tree_is_refused(tmp_path: Path) -> None:
    """Negative control: every kind of fault, each once."""
    write(tmp_path, BAD_TREE)
    assert complaints(house(tmp_path)) == [
        "samkv_rag.cellar has no floor: give its room a line in FLOORS",
        "samkv_rag.engine:1 imports typer: only for samkv_rag.cli",
        "samkv_rag.methods.a:3 imports transformers.cache_utils: only for samkv_rag.model, training",
        "samkv_rag.store:1 imports samkv_rag.model.cache: a neighbour on floor 2",
        "samkv_rag.types:1 imports samkv_rag.engine: upward",
        "samkv_kernels:1 imports numpy: kernels know torch and nothing else",
        "samkv_kernels.cpu.packed:1 imports scipy: kernels know torch and nothing else",
        "circle of modules: samkv_rag.ingest samkv_rag.parity",
        "circle of modules: samkv_rag.methods.a samkv_rag.methods.b",
        "circle of rooms: samkv_rag.cli samkv_rag.retrieval",
        "circle of rooms: samkv_rag.ingest samkv_rag.parity",
    ]


def test_imports_for_type_checking_close_no_circle_but_must_not_point_upward(tmp_path: Path) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {} import x"
    write(
        tmp_path,
        {
            "samkv_rag/store/disk.py": "from samkv_rag.store import upkeep",
            "samkv_rag/store/upkeep.py": guarded.format("samkv_rag.store.disk"),
            "samkv_rag/store/files.py": guarded.format("samkv_rag.engine"),
            "samkv_rag/engine.py": "",
        },
    )
    assert complaints(house(tmp_path)) == ["samkv_rag.store.files:3 imports samkv_rag.engine: upward"]
