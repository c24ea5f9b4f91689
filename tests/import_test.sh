#!/bin/sh
# Installs longwatch, by constraints.txt but without torch, into the newest Python newer than the oldest supported one that
# is to be found here (PATH, pyenv), and imports every module; what asks for torch is named and passed over.
# Exits 0 with the reason where no such Python, or no network, is to be had.
set -eu
cd "$(dirname "$0")/.."

newest=""
for python in "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3 \
    "$(command -v python3.12 || true)" "$(command -v python3.13 || true)" "$(command -v python3.14 || true)"; do
    [ -x "$python" ] && "$python" -c 'import venv, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || continue
    version="$("$python" -c 'import sys; print("%d%02d%02d" % sys.version_info[:3])')"
    [ "$version" -gt "${best:-0}" ] && best="$version" newest="$python"
done
[ -n "$newest" ] || { echo "test-import: skipped: no Python newer than 3.11 is to be found"; exit 0; }

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
"$newest" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip download --no-deps --dest "$scratch" --constraint constraints.txt tqdm >"$scratch/log" 2>&1 ||
    { echo "test-import: skipped: no package index ($(tail -n 1 "$scratch/log"))"; exit 0; }
"$newest" - >"$scratch/requirements.txt" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
print(*(requirement for requirement in wanted if not requirement.startswith("torch")), sep="\n")
PYTHON
pip install --constraint constraints.txt --requirement "$scratch/requirements.txt"
pip install --no-deps .
cd "$scratch"
"$scratch/venv/bin/longwatch" --version
"$scratch/venv/bin/python" - <<'PYTHON'
import importlib
import pkgutil
import sys

done, left = 0, []
for root in ("connectors", "training", "detector"):
    for module in pkgutil.walk_packages(importlib.import_module(root).__path__, f"{root}."):
        try:
            importlib.import_module(module.name)
            done += 1
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] not in ("torch", "matplotlib"):
                raise
            left.append(module.name)
print(f"Python {sys.version.split()[0]}: {done} modules imported; {len(left)} ask for torch or matplotlib: {' '.join(left)}")
PYTHON
