"""The package: what it asks for, what the lock holds, and that what is built can be installed and run."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import detector
from tests.deploy.paths import DEPLOY, ROOT, load_toml, load_yaml

LOCK = ROOT / "constraints.txt"


def project() -> dict[str, Any]:
    found: dict[str, Any] = load_toml(ROOT / "pyproject.toml")["project"]
    return found


def requirements() -> dict[str, Requirement]:
    """Return what the package and its tests ask for on this machine, by name."""
    extras = project()["optional-dependencies"].values()
    asked = [Requirement(text) for texts in (project()["dependencies"], *extras) for text in texts]
    return {
        canonicalize_name(wanted.name): wanted
        for wanted in asked
        if wanted.name != "longwatch" and (wanted.marker is None or wanted.marker.evaluate())
    }


def locked() -> dict[str, Version]:
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert None not in pairs, "name==version only; no +cpu, which other indexes do not have"
    return {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs if pair}


def test_the_constraints_pin_an_allowed_version_of_every_dependency() -> None:
    assert requirements().keys() - locked().keys() == set()
    assert [name for name, wanted in requirements().items() if locked()[name] not in wanted.specifier] == []


def test_the_constraints_pin_indirect_dependencies() -> None:
    """As far as it is installed here; CUDA's packages are torch's to choose."""
    missing, seen, todo = set(), set(), [(name, wanted.extras) for name, wanted in requirements().items()]
    while todo:
        name, extras = todo.pop()
        if name in seen or re.match(r"nvidia-|cuda-|triton", name):
            continue
        seen.add(name)
        if name not in locked():
            missing.add(name)
        try:
            further = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        todo += [
            (canonicalize_name(wanted.name), wanted.extras)
            for wanted in further
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        ]
    assert len(seen) > len(requirements())
    assert missing == set()


def test_version_ranges_end_before_the_next_breaking_release() -> None:
    torch, kafka, numba = (requirements()[name].specifier for name in ("torch", "kafka-python", "numba"))
    assert Version("2.14.1") in torch
    assert Version("3.0") not in torch
    assert Version("3.1.0") not in kafka  # its private parts are used
    assert Version("0.70.0") not in numba
    assert [text for text in project()["dependencies"] if "<" not in text] == []


def test_make_image_and_documents_install_with_the_constraints() -> None:
    for path in (ROOT / "Makefile", DEPLOY / "Dockerfile"):
        text = path.read_text()
        assert "torch==2" not in text, f"{path.name}: the lock says which torch"
        assert "constraints.txt" in text
    assert "--constraint constraints.txt" in (DEPLOY / "README.md").read_text()


def test_the_version_is_stated_once(tmp_path: Path) -> None:
    assert project()["dynamic"] == ["version"]
    shown = subprocess.run(
        [sys.executable, "-m", "detector", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert shown.stdout == f"longwatch {detector.__version__}\n"
    tags = [
        image["newTag"]
        for path in (DEPLOY / "kubernetes").rglob("kustomization.yaml")
        for image in load_yaml(path).get("images", [])
    ]
    assert set(tags) == {detector.__version__}
    sources = [path for part in ("connectors", "training", "detector") for path in (ROOT / part).rglob("*.py")]
    named = [path.name for path in sources if f'"{detector.__version__}"' in path.read_text()]
    assert named == ["__init__.py"]


def test_the_metadata_have_python_versions_and_authors() -> None:
    prefix = "Programming Language :: Python :: "
    pythons = {line.removeprefix(prefix) for line in project()["classifiers"] if line.startswith(prefix)}
    assert {"3.11", "3.12", "3.13", "3.14"} <= pythons
    assert project()["authors"] == [{"name": "longwatch authors"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, made in a copy of the checkout, and the wheel that is made of it."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    if Version(setuptools.__version__) < Version("77"):
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build it")
    out = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a checkout")
    checkout = out / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists() and name.partition("/")[0] not in ("docs", "tests"):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    for what, where in (("build_sdist", checkout), ("build_wheel", out / "unpacked")):
        if what == "build_wheel":
            (archive,) = out.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(out / "all", filter="data")
            (out / "all").glob("*").__next__().rename(where)
        ran = subprocess.run(
            [sys.executable, "-c", build, what, str(out)], capture_output=True, text=True, check=False, cwd=where
        )
        assert ran.returncode == 0, ran.stderr
    return out


def test_a_wheel_built_from_the_sdist_holds_every_module(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"longwatch-{detector.__version__}-py3-none-any.whl"
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "connectors", "training", "detector"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    wanted = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert inside <= wanted
    assert {name for name in wanted - inside if not name.endswith(".md")} == set()


def test_the_wheel_installs_into_a_fresh_environment_and_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    # its dependencies are those of this environment
    for path in (tmp_path / "venv" / "lib").glob("python3*/site-packages"):
        (path / "dependencies.pth").write_text("\n".join(entry for entry in sys.path if "site-packages" in entry))
    for arguments, expected in ((["--version"], f"longwatch {detector.__version__}"), (["config"], "[kafka]")):
        shown = subprocess.run(
            [str(tmp_path / "venv" / "bin" / "longwatch"), *arguments],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert expected in shown.stdout, shown.stderr
