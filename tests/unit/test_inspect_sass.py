"""The machine code of the CUDA operators: what it must hold, and that the tool would see it if not.

Without a device: nvcc builds the operators, cuobjdump shows them.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from dsm_engine.ops.library import cuda_core

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
try:
    import inspect_sass as tool
finally:
    sys.path.remove(str(REPOSITORY / "tools"))

USAGE = """
Fatbin elf code:
arch = {architecture}

Resource usage:
 Function _ZN3dsm4cuda17dense_mask_kernelIfEEvPT_:
  REG:{registers} STACK:{stack} SHARED:32 LOCAL:0 CONSTANT[0]:392 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
arch = {architecture}

		Function : _ZN3dsm4cuda17dense_mask_kernelIfEEvPT_
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;  /* 0x00000a00ff017624 */
  /* 0x000fe400078e00ff */
        /*0010*/              @!P1 LDG.E.CONSTANT R2, desc[UR4][R2.64] ;  /* 0x0000000000027919 */
        /*0020*/              @P0  STG.E.U8 desc[UR4][R2.64], R4 ;  /* 0x0000000000027919 */
        /*0030*/                   {store} ;  /* 0x0000000000027919 */
        /*0040*/                   EXIT ;  /* 0x0000000000027919 */
"""


@pytest.fixture(scope="module")
def built_kernels() -> list[tool.Kernel]:
    if cuda_core is None:
        pytest.skip("the CUDA operators are not built")
    if tool.find_cuobjdump() is None:
        pytest.skip("cuobjdump is not on this machine")
    return tool.inspect(tool.built_module())


def kernels_of_text(*, store: str = "STG.E.128 desc[UR4][R2.64], R4", stack: int = 0):
    return [
        kernel
        for architecture in tool.ARCHITECTURES
        for kernel in tool.parse(
            USAGE.format(architecture=architecture, registers=24, stack=stack),
            SASS.format(architecture=architecture, store=store),
        )
    ]


@pytest.fixture
def one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "KERNELS", {"dense_mask_kernel": True})


def test_cuda_operators_are_built_where_nvcc_is() -> None:
    nvcc = tool.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    assert cuda_core is not None, f"{nvcc} is there; run `make install` again"


@pytest.mark.skipif("CUDAARCHS" in os.environ, reason="CUDAARCHS chose other architectures")
def test_every_kernel_is_compiled_for_every_architecture_and_keeps_its_promise(
    built_kernels,
) -> None:
    assert tool.faults(built_kernels) == []


def test_every_kernel_of_the_sources_is_in_the_table_and_in_the_module(built_kernels) -> None:
    in_sources = tool.kernels_of_sources(REPOSITORY / "csrc" / "cuda")
    assert in_sources == tool.KERNELS.keys() == {kernel.name for kernel in built_kernels}


def test_the_counts_of_a_disassembly_are_right(one_kernel) -> None:
    kernels = kernels_of_text()
    assert [kernel.architecture for kernel in kernels] == list(tool.ARCHITECTURES)
    kernel = kernels[0]
    assert (kernel.name, kernel.label) == ("dense_mask_kernel", "dense_mask_kernel<float>")
    assert (kernel.registers, kernel.stack_bytes, kernel.shared_bytes) == (24, 0, 32)
    assert kernel.num_instructions == 5
    assert kernel.stores == {128: 1, 8: 1} and kernel.loads == {32: 1}
    assert tool.faults(kernels) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ({"store": "STG.E.64 desc[UR4][R2.64], R4"}, r"\(sm_90a\) has no 16-byte store"),
        ({"store": "STL.128 [R1], R4"}, "uses local memory: 0 bytes of stack, 1 accesses"),
        ({"stack": 16}, "uses local memory: 16 bytes of stack, 0 accesses"),
    ],
)
def test_narrow_stores_and_spills_are_faults(one_kernel, text, fault) -> None:
    assert re.search(fault, "\n".join(tool.faults(kernels_of_text(**text))))


def test_a_kernel_that_nobody_looked_at_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "KERNELS", {"other_kernel": False})
    assert tool.faults(kernels_of_text()) == [
        "dense_mask_kernel<float> is not in KERNELS of tools/inspect_sass.py:"
        " look at it and add it",
        "other_kernel is in KERNELS of tools/inspect_sass.py and not in the module",
    ]


def test_an_architecture_left_out_is_a_fault(one_kernel) -> None:
    kernels = [k for k in kernels_of_text() if k.architecture != "sm_100"]
    assert tool.faults(kernels) == ["dense_mask_kernel<float> is not compiled for sm_100"]
    assert tool.faults([]) == ["there is no kernel in the module"]


def test_kernels_of_sources_are_found_however_they_are_declared(tmp_path: Path) -> None:
    (tmp_path / "some.cu").write_text(
        "template <class T>\n__global__ void __launch_bounds__(256)\n    first_kernel(T* out) {}\n"
        "__global__ void second_kernel() {}\n"
        "__global__ __launch_bounds__(256, 2) void third_kernel() {}\n"
    )
    assert tool.kernels_of_sources(tmp_path) == {"first_kernel", "second_kernel", "third_kernel"}


def test_a_machine_without_the_module_or_the_tools_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["inspect_sass.py", str(tmp_path / "none.so")])
    assert tool.main() == 2
    assert "none.so: no such file" in capsys.readouterr().err
