"""Lay the source out as it is installed, as a folder of links, for tools that read source.

`schemas/` and `compilers/` are folders of the repository's root and subpackages of `graphnet` once installed.
mypy, pyright and the documentation look for `graphnet/schemas`, so this script makes `typed/graphnet`:
a link to everything in `graphnet/`, and a link to each of the two. Git ignores `typed/`.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"__pycache__"}


def wanted_links() -> dict[str, Path]:
    """Return the name of each link in `typed/graphnet` with the file or folder it leads to."""
    links = {path.name: path for path in sorted((ROOT / "graphnet").iterdir()) if path.name not in SKIPPED}
    for name in ("schemas", "compilers"):
        if name in links:
            raise SystemExit(f"graphnet/{name} exists; that package lives in {name}/ at the repository's root")
        links[name] = ROOT / name
    return links


def main() -> None:
    folder = ROOT / "typed" / "graphnet"
    folder.mkdir(parents=True, exist_ok=True)
    links = wanted_links()
    for path in folder.iterdir():
        if path.name not in links and path.is_symlink():
            path.unlink()
    for name, target in links.items():
        link, relative = folder / name, os.path.relpath(target, folder)
        if link.is_symlink():
            if os.readlink(link) == relative:
                continue
            link.unlink()
        link.symlink_to(relative, target_is_directory=target.is_dir())


if __name__ == "__main__":
    main()
