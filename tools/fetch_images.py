#!/usr/bin/env python
"""Fetch the images that `castvision benchmark fidelity` and `castvision benchmark heads` are documented with.

photographs: nine photographs and a painting of 1,600 to 5,640 px, from Debian's package mate-backgrounds.
earth: NASA's blue marble (4,096 x 2,048) and its water mask (1,600 x 800), from the npm package three-globe.
nuclei: a fluorescence image of 512 x 512 pixels with a mask of its nuclei, from PyPI's sdist of stardist.
brain: a T1 volume (181 x 217 x 181) with the AAL atlas, from Debian's package mricron-data.

The package is checked against its SHA-256 before anything of it is read. `--archive` takes one that is there already
(`apt-get download mate-backgrounds mricron-data`, `npm pack three-globe@2.45.2`, stardist-0.9.2.tar.gz of PyPI).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """A package and what is wanted of it.

    Attributes:
        urls: Tried in order.
        sha256: Of the package.
        folder: In its archive.
        names: Of files, below the folder.
    """

    urls: tuple[str, ...]
    sha256: str
    folder: str
    names: tuple[str, ...]


_DEB = "pool/main/m/mate-backgrounds/mate-backgrounds_1.26.0-1_all.deb"
_BRAIN = "pool/main/m/mricron/mricron-data_1.2.20211006+dfsg-4_all.deb"
SOURCES = {
    "photographs": Source(
        (f"https://deb.debian.org/debian/{_DEB}", f"https://snapshot.debian.org/archive/debian/20230701T000000Z/{_DEB}"),
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "./usr/share/backgrounds/mate/",
        ("abstract/Elephants_5640x3172.jpg", *(f"nature/{name}.jpg" for name in (
            "Aqua", "Dune", "FreshFlower", "Garden", "LadyBird", "RainDrops", "Storm", "TwoWings", "YellowFlower"
        ))),
    ),
    "earth": Source(
        ("https://registry.npmjs.org/three-globe/-/three-globe-2.45.2.tgz",),
        "f6deff6848980a4bda13b0993e5ebc929b27e791e063a5517c87115ff7e669cb",
        "package/example/img/",
        ("earth-blue-marble.jpg", "earth-water.png"),
    ),
    "nuclei": Source(
        ("https://files.pythonhosted.org/packages/0e/90/a45dcbf00d98b25b81864486a43c125ed8146750c0420746a2b90c056fca/"
         "stardist-0.9.2.tar.gz",),
        "65120fe0a092608f3d76fc664c67cdf147d02ac4a101937fb806a60a7bcb055a",
        "stardist-0.9.2/stardist/data/images/",
        ("img2d.tif", "mask2d.tif"),
    ),
    "brain": Source(
        (f"https://deb.debian.org/debian/{_BRAIN}",
         f"https://snapshot.debian.org/archive/debian/20230701T000000Z/{_BRAIN}"),
        "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        "./usr/share/mricron/templates/",
        ("ch2.nii.gz", "aal.nii.gz", "aal.nii.txt"),
    ),
}  # fmt: skip


def read_package(source: Source, archive: Path | None) -> bytes:
    """The package's bytes, checked."""
    problems = []
    for place in (str(archive),) if archive else source.urls:
        try:
            if archive:
                content = archive.read_bytes()
            else:
                with urllib.request.urlopen(place, timeout=60) as answer:
                    content = answer.read()
        except (OSError, urllib.error.URLError) as error:
            problems.append(f"{place}: {error}")
            continue
        found = hashlib.sha256(content).hexdigest()
        if found == source.sha256:
            return content
        problems.append(f"{place}: SHA-256 {found}, expected {source.sha256}")
    raise ValueError(f"could not get the package; {'; '.join(problems)}; give one that you have with --archive")


def open_tar(content: bytes) -> tarfile.TarFile:
    """The tar of a .tgz, or the data of a .deb, which is an `ar` archive."""
    if content.startswith(b"!<arch>\n"):
        start = 8
        while start < len(content):
            name, size = content[start : start + 16].strip(), int(content[start + 48 : start + 58])
            if name.startswith(b"data.tar"):
                content = content[start + 60 : start + 60 + size]
                break
            start += 60 + size + size % 2
        else:
            raise ValueError("expected data.tar in the .deb, found none")
    return tarfile.open(fileobj=io.BytesIO(content))


def unpack(source: Source, content: bytes, output: Path) -> list[Path]:
    """Write the wanted files, flat, into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    written = []
    with open_tar(content) as tar:
        for name in source.names:
            member = tar.extractfile(source.folder + name)
            if member is None:
                raise ValueError(f"expected {name} in the package, found no file")
            path = output / Path(name).name
            path.write_bytes(member.read())
            written.append(path)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(SOURCES))
    parser.add_argument("output", type=Path, help="folder to write to")
    parser.add_argument("--archive", type=Path, help="the package, where it is there already")
    arguments = parser.parse_args()
    source = SOURCES[arguments.which]
    try:
        written = unpack(source, read_package(source, arguments.archive), arguments.output)
    except (ValueError, OSError, KeyError, tarfile.TarError) as error:
        print(f"fetch_images.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
