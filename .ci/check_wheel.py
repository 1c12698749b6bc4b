"""The wheel holds exactly the package's files; the sdist what building and testing need, and no more."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

SDIST_ROOTS = {
    "lightning_tricks",
    "tests",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "pyproject.toml",
    "PKG-INFO",
    ".gitignore",
}


def main(wheel: str, sdist: str) -> None:
    tracked = subprocess.run(["git", "ls-files", "lightning_tricks"], capture_output=True, text=True, check=True)  # noqa: S607
    expected = set(tracked.stdout.split())
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    if inside != expected:
        raise SystemExit(
            f"the wheel misses {sorted(expected - inside)} and should not hold {sorted(inside - expected)}"
        )
    if not any(name.endswith("licenses/LICENSE") for name in names):
        raise SystemExit("the wheel holds no licence")
    size = Path(wheel).stat().st_size
    with tarfile.open(sdist) as archive:
        roots = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    if not {"lightning_tricks", "tests", "pyproject.toml"} <= roots <= SDIST_ROOTS:
        raise SystemExit(f"the sdist should hold {sorted(SDIST_ROOTS)}, but holds {sorted(roots)}")
    print(f"wheel: {len(inside)} files, {size} bytes; sdist: {', '.join(sorted(roots))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
