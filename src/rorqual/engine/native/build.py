"""Compile the kernels: `python src/rorqual/engine/native/build.py`. The build of the package (setup.py) does the same.

This file imports only the standard library, because the build has nothing else.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

SOURCES = Path(__file__).with_name("csrc")
FLAGS = [
    "-O3",
    "-std=gnu17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-g0",
]
"""`-ffp-contract=off`: sums are fused where the source says so, and nowhere else."""
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
VARIANTS = {
    "avx2": AVX2,
    "avx512": [*AVX2, *AVX512],
    "avx512vnni": [*AVX2, *AVX512, "-mavx512vnni"],
}


def library_file() -> Path:
    """Return the file of the compiled kernels. Its name has a digest of the sources, so a library of other sources is not found."""
    digest = hashlib.sha256(repr((FLAGS, VARIANTS)).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return SOURCES.with_name(f"kernels-{digest.hexdigest()[:12]}.shared")


def compiler() -> Sequence[str] | None:
    """Return the command of a C compiler: the system's, or zig's from the package `ziglang`. None if there is none."""
    for name in ("cc", "gcc", "clang"):
        if (path := shutil.which(name)) is not None:
            return [path]
    found = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False)
    return [sys.executable, "-m", "ziglang", "cc"] if found.returncode == 0 else None


def build(folder: Path = SOURCES.parent) -> bool:
    """Compile the kernels into `folder`, and return whether there is a compiler for this processor. Raises CalledProcessError if the
    compiler fails."""
    if "x86_64" not in sysconfig.get_platform() and "amd64" not in sysconfig.get_platform():
        return False
    if (command := compiler()) is None:
        return False
    target = folder / library_file().name
    with TemporaryDirectory() as objects_folder:
        objects = [Path(objects_folder, f"{name}.o") for name in (*VARIANTS, "threads")]
        for name, made in zip((*VARIANTS, "threads"), objects, strict=True):
            flags = [*FLAGS, *VARIANTS.get(name, []), f"-DVARIANT={name}"]
            source = SOURCES / ("variant.c" if name in VARIANTS else "threads.c")
            subprocess.run([*command, *flags, "-c", str(source), "-o", str(made)], check=True)
        linked = target.with_name(f".{target.name}")
        subprocess.run([*command, "-shared", "-o", str(linked), *map(str, objects), "-lm", "-lpthread"], check=True)
        for older in folder.glob("kernels-*.shared"):
            older.unlink()
        linked.replace(target)
    return True


if __name__ == "__main__":
    sys.exit(0 if build() else "no kernels: they need an x86-64 processor, and cc or the package ziglang")
