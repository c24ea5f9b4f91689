"""The page's charting library, from npm into detector/web/static/vendor: python -m tests.vendor_page (make vendor).

npm checks what it fetches against the registry's hash; here the archive's own is pinned, too. What is taken is
committed, so that neither a build nor a browser needs npm; a test compares it with FILES.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "detector" / "web" / "static" / "vendor"
UPLOT = "uplot@1.6.32"
UPLOT_SHA512 = "KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw=="
# file of the package -> name here, and its SHA-256
FILES = {
    "dist/uPlot.esm.js": ("uPlot.esm.js", "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"),
    "dist/uPlot.min.css": ("uPlot.min.css", "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04"),
    "LICENSE": ("LICENSE-uPlot", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
}
AXE = "axe-core@4.14.1"  # checks pages for what keeps people out; for tests only
AXE_SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="


class VendorError(Exception):
    """What is wanted cannot be had."""


def fetch(package: str, sha512: str, names: list[str]) -> dict[str, bytes]:
    """Return files of an npm package, by their names in it. Raises VendorError."""
    npm = shutil.which("npm")
    if npm is None:
        raise VendorError(f"{package}: npm is not in PATH")
    with tempfile.TemporaryDirectory() as folder:
        packed = [npm, "pack", "--silent", "--pack-destination", folder, package]
        done = subprocess.run(packed, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise VendorError(f"{package}: npm pack failed: {''.join(last) or 'it said nothing'}")
        found = base64.b64encode(hashlib.sha512(archives[0].read_bytes()).digest()).decode()
        if found != sha512:
            raise VendorError(f"{package}: its SHA-512 is {found}, pinned is {sha512}: the package was changed")
        with tarfile.open(archives[0]) as archive:
            members = {name: archive.extractfile(f"package/{name}") for name in names}
            return {name: member.read() for name, member in members.items() if member is not None}


def vendor() -> None:
    """Write the library's files. Raises VendorError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for source, content in fetch(UPLOT, UPLOT_SHA512, list(FILES)).items():
        name, sha256 = FILES[source]
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise VendorError(f"{UPLOT}: {source} has SHA-256 {found}, not {sha256}: write the new one into FILES")
        (FOLDER / name).write_bytes(content)


def fetch_axe(folder: Path) -> None:
    """Write axe.min.js into a folder. Raises VendorError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "axe.min.js").write_bytes(fetch(AXE, AXE_SHA512, ["axe.min.js"])["axe.min.js"])


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["axe"]:
            fetch_axe(Path(sys.argv[2]))
        else:
            vendor()
    except (VendorError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"vendor_page: {error}")
