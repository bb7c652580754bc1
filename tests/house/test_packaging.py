"""The wheel holds the four import roots and their data, and nothing that would shadow another package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {  # folder in the repository -> folder in the wheel
    "samkv_rag": "samkv_rag",
    "kernels/samkv_kernels": "samkv_kernels",
    "integrations/langchain_samkv": "langchain_samkv",
    "integrations/llama_index/llms/samkv": "llama_index/llms/samkv",
}
IMPORT_ALL = """
import sys, samkv_rag, samkv_kernels, langchain_samkv, llama_index.llms.samkv
for module in (samkv_rag, samkv_kernels, langchain_samkv, llama_index.llms.samkv):
    print(module.__file__)
assert langchain_samkv.SamKVEngine is llama_index.llms.samkv.SamKVEngine is samkv_rag.SamKVEngine
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    # Without PYTHONPATH and from a folder outside the checkout: only what is installed can be imported.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("samkv_rag-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment that has the wheel, and borrows the dependencies from this one."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    interpreter = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", wheel, cwd=home)
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    # A line in a .pth adds the folder to the path without reading the .pth files in it, so that an editable
    # installation of the checkout in this environment stays invisible.
    (site / "borrowed.pth").write_text("".join(f"{sysconfig.get_path(kind)}\n" for kind in ("purelib", "platlib")))
    return interpreter


def test_the_four_roots_are_imported_from_the_wheel(python: Path) -> None:
    files = run(python, "-c", IMPORT_ALL, cwd=python.parent).split()
    assert len(files) == 4
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files), files


def test_no_package_is_shadowed(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"samkv_rag", "samkv_kernels", "langchain_samkv", "llama_index"}
    assert not {"llama_index/__init__.py", "llama_index/llms/__init__.py"} & names


def test_transformers_imports_beside_the_source_roots() -> None:
    """From the repository's root, where `kernels/` is an importable namespace."""
    run(sys.executable, "-c", "from transformers import LlamaForCausalLM", cwd=ROOT)


def test_everything_in_the_packages_is_in_the_wheel(names: set[str]) -> None:
    expected = {
        str(there / path.relative_to(ROOT / here))
        for here, there in ((here, Path(there)) for here, there in PACKAGES.items())
        for path in (ROOT / here).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - names == set()
    assert {f"{there}/py.typed" for there in PACKAGES.values()} <= names


def test_the_demos_files_are_in_the_wheel(names: set[str]) -> None:
    assert "samkv_rag/demo/questions.json" in names
    assert any(name.startswith("samkv_rag/demo/handbook/") for name in names)


def test_the_readers_files_are_in_the_wheel(names: set[str]) -> None:
    if not list((ROOT / "samkv_rag" / "reader").rglob("*.safetensors")):
        pytest.skip("this checkout holds no trained reader: make reader")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert any(name.startswith("samkv_rag/reader/") and name.endswith("/" + file) for name in names), file


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 50e6, "the bundled readers have at most 48 MB of weights"


def test_the_command_and_the_metadata(python: Path, wheel: Path) -> None:
    assert (python.parent / "samkv-rag").is_file()
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = archive.read(entry).decode()
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert sorted(re.split(r"[ :<>=]+", line)[1] for line in base) == ["numpy", "safetensors", "torch", "transformers"]
    assert "License-Expression: Apache-2.0" in metadata
