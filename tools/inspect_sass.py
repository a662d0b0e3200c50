"""Shows the machine code of the built CUDA operators and checks what their kernels promise.

    python tools/inspect_sass.py [MODULE.so]

A line for each kernel and architecture: registers, bytes of stack and local memory (spills), how
many instructions store to and load from global memory, by width, as cuobjdump and nvdisasm have it.
Exit code 1 where a kernel is missing from an architecture, uses local memory, or has no 16-byte
store although KERNELS says so; 2 where there is nothing to look at.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from dsm_engine.errors import DsmError

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
"""What CMakeLists.txt compiles for, as cuobjdump calls it."""

KERNELS = {
    "block_mask_kernel": True,
    "context_parallel_kernel": True,
    "dense_mask_kernel": True,
    "document_loss_kernel": False,  # two sums a document
    "packed_metadata_kernel": True,
    "slice_loss_kernel": False,
}
"""Every kernel of csrc/cuda, and whether it promises 16-byte stores."""

_CUDA_FOLDER = Path("/usr/local/cuda")
_WIDTHS = (256, 128, 64, 16, 8)
_KERNEL = re.compile(
    r"__global__\s+(?:\w+\s*\([^)]*\)\s*)*void\s+(?:\w+\s*\([^)]*\)\s+)*(\w+)\s*\("
)
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?\w+\s+)?([A-Z][\w.]*)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(kw_only=True, slots=True)
class Kernel:
    """One kernel as compiled for one architecture."""

    name: str
    label: str
    """The name with its template arguments."""
    architecture: str
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    local_bytes: int = 0
    num_instructions: int = 0
    stores: Counter[int] = field(default_factory=Counter)
    """Instructions that store to global memory, by bits."""
    loads: Counter[int] = field(default_factory=Counter)
    num_local_accesses: int = 0

    @property
    def uses_local_memory(self) -> bool:
        return bool(self.stack_bytes or self.local_bytes or self.num_local_accesses)

    def take_in(self, opcode: str) -> None:
        """Counts one instruction."""
        self.num_instructions += 1
        operation, *modifiers = opcode.split(".")
        if operation in ("STL", "LDL"):
            self.num_local_accesses += 1
        elif operation in ("STG", "ST"):
            self.stores[_bits(modifiers)] += 1
        elif operation in ("LDG", "LD"):
            self.loads[_bits(modifiers)] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Machine code of the built CUDA operators")
    parser.add_argument("module", type=Path, nargs="?", help="default: the built dsm_engine._cuda")
    module = parser.parse_args().module
    try:
        kernels = inspect(built_module() if module is None else module)
    except DsmError as error:
        print(f"inspect_sass: {error}", file=sys.stderr)
        return 2
    print_table(kernels)
    found = faults(kernels)
    for fault in found:
        print(f"inspect_sass: {fault}", file=sys.stderr)
    return 1 if found else 0


def built_module() -> Path:
    """The file of dsm_engine._cuda; DsmError where it was not built."""
    spec = find_spec("dsm_engine._cuda")
    if spec is None or spec.origin is None:
        raise DsmError("dsm_engine._cuda is not built: `make install` builds it where nvcc is")
    return Path(spec.origin)


def find_nvcc() -> str | None:
    """The compiler that `make install` takes."""
    return _find_tool("nvcc")


def find_cuobjdump() -> str | None:
    """cuobjdump of the toolkit, or of the package nvidia-cuda-cuobjdump."""
    return _find_tool("cuobjdump")


def inspect(module: Path) -> list[Kernel]:
    """Every kernel of a file with CUDA code in it, for every architecture it has code for."""
    if not module.is_file():
        raise DsmError(f"{module}: no such file")
    return parse(_cuobjdump("-res-usage", module), _cuobjdump("-sass", module))


def parse(usage_text: str, sass_text: str) -> list[Kernel]:
    """The kernels of what `cuobjdump -res-usage` and `cuobjdump -sass` print."""
    kernels: dict[tuple[str, str], Kernel] = {}
    architecture = symbol = ""
    for line in usage_text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            symbol = found[1]
        elif found := _USAGE.search(line):
            registers, stack, shared, local = map(int, found.groups())
            kernels[architecture, symbol] = Kernel(
                name="",
                label=symbol,
                architecture=architecture,
                registers=registers,
                stack_bytes=stack,
                shared_bytes=shared,
                local_bytes=local,
            )
    for line in sass_text.splitlines():
        if found := re.match(r"arch = (\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            symbol = found[1]
        elif found := _INSTRUCTION.match(line):
            kernels[architecture, symbol].take_in(found[1])
    symbols = [kernel.label for kernel in kernels.values()]
    for kernel, readable in zip(kernels.values(), _demangle(symbols), strict=True):
        kernel.name, kernel.label = _names(readable)
    return sorted(kernels.values(), key=_by_label_and_architecture)


def faults(kernels: Sequence[Kernel]) -> list[str]:
    """What does not hold, a line each."""
    if not kernels:
        return ["there is no kernel in the module"]
    return [*_missing(kernels), *_broken_promises(kernels)]


def kernels_of_sources(folder: Path) -> set[str]:
    """Names of the kernels that the .cu files of a folder define."""
    return {
        name for path in folder.glob("*.cu") for name in _KERNEL.findall(path.read_text("utf-8"))
    }


def print_table(kernels: Sequence[Kernel]) -> None:
    width = max((len(kernel.label) for kernel in kernels), default=0)
    print(
        f"{'kernel':{width}}  {'arch':7} {'registers':>9} {'stack':>5} {'local':>5} {'shared':>6}"
        f" {'instructions':>12}  stores / loads by bits"
    )
    for kernel in kernels:
        local = kernel.local_bytes + kernel.num_local_accesses
        print(
            f"{kernel.label:{width}}  {kernel.architecture:7} {kernel.registers:>9}"
            f" {kernel.stack_bytes:>5} {local:>5} {kernel.shared_bytes:>6}"
            f" {kernel.num_instructions:>12}  {_by_bits(kernel.stores)} / {_by_bits(kernel.loads)}"
        )


def _by_label_and_architecture(kernel: Kernel) -> tuple[str, int]:
    return kernel.label, int(re.sub(r"\D", "", kernel.architecture))


def _missing(kernels: Sequence[Kernel]) -> Iterator[str]:
    labels = sorted({(kernel.name, kernel.label) for kernel in kernels})
    for name, label in labels:
        if name not in KERNELS:
            yield f"{label} is not in KERNELS of tools/inspect_sass.py: look at it and add it"
        has = {kernel.architecture for kernel in kernels if kernel.label == label}
        if lacks := [name for name in ARCHITECTURES if name not in has]:
            yield f"{label} is not compiled for {', '.join(lacks)}"
    for name in KERNELS.keys() - {name for name, _ in labels}:
        yield f"{name} is in KERNELS of tools/inspect_sass.py and not in the module"


def _broken_promises(kernels: Sequence[Kernel]) -> Iterator[str]:
    for kernel in kernels:
        who = f"{kernel.label} ({kernel.architecture})"
        if kernel.uses_local_memory:
            yield (
                f"{who} uses local memory: {kernel.stack_bytes} bytes of stack,"
                f" {kernel.num_local_accesses} accesses"
            )
        if KERNELS.get(kernel.name) and not kernel.stores[128]:
            yield f"{who} has no 16-byte store"


def _bits(modifiers: Sequence[str]) -> int:
    widths = {modifier.lstrip("US") for modifier in modifiers}
    return next((bits for bits in _WIDTHS if str(bits) in widths), 32)


def _by_bits(accesses: Counter[int]) -> str:
    return " ".join(f"{n}x{bits}" for bits, n in sorted(accesses.items(), reverse=True)) or "none"


def _names(readable: str) -> tuple[str, str]:
    """dense_mask_kernel, dense_mask_kernel<float> of a demangled signature."""
    signature = readable.replace("(anonymous namespace)::", "").partition("(")[0]
    found = re.search(r"(\w+)(<.*>)?$", signature)
    return (found[1], found[0]) if found else (readable, readable)


def _demangle(symbols: Sequence[str]) -> list[str]:
    demangler = shutil.which("c++filt")
    if demangler is None:
        raise DsmError("c++filt is not on this machine: apt-get install binutils")
    return _output([demangler], "\n".join(symbols)).splitlines()


def _cuobjdump(option: str, module: Path) -> str:
    tools = [_find_tool(name) for name in ("cuobjdump", "nvdisasm")]
    if None in tools:
        raise DsmError(
            "cuobjdump or nvdisasm is not on this machine:"
            " pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    return _output([str(tools[0]), option, str(module)], None, [str(Path(str(tools[1])).parent)])


def _output(command: list[str], text: str | None, folders: Sequence[str] = ()) -> str:
    environment = os.environ | {"PATH": os.pathsep.join([*folders, os.environ.get("PATH", "")])}
    try:
        return subprocess.run(
            command, input=text, env=environment, check=True, capture_output=True, text=True
        ).stdout
    except subprocess.CalledProcessError as error:
        raise DsmError(f"{' '.join(command)}: {error.stderr.strip()}") from None


def _find_tool(name: str) -> str | None:
    folders = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    candidates = [folder / "bin" / name for folder in (*folders, _CUDA_FOLDER)]
    try:
        files = metadata.files(f"nvidia-cuda-{name}") or ()
        candidates += [Path(str(file.locate())) for file in files if file.name == name]
    except metadata.PackageNotFoundError:
        pass
    on_path = shutil.which(name)
    return on_path or next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


if __name__ == "__main__":
    sys.exit(main())
