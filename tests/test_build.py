"""What is built: for which machines a wheel says it is, and with which kernels."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from alignjax.engines import library

pytest.importorskip("hatchling")
import hatch_build

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("versions", "glibc"),
    [
        (["GLIBC_2.2.5", "GLIBC_2.14", "GLIBCXX_3.4", "GLIBCXX_3.4.11", "CXXABI_1.3"], 17),
        (["GLIBC_2.28", "GLIBCXX_3.4.24", "GCC_3.0"], 28),
        (["GLIBC_2.17", "GLIBCXX_3.4.21", "CXXABI_1.3.9"], 24),
        (["GLIBC_2.17", "GLIBCXX_3.4.30"], 35),
        (["GLIBC_2.17", "GLIBCXX_3.4.31"], 39),
        (["GLIBC_2.17", "GLIBCXX_3.4.99"], None),  # newer than what is known
        (["GLIBC_ABI_DT_RELR"], None),
        (["ZLIB_1.2.0"], None),
        (None, None),  # cannot be told
    ],
)
def test_a_wheel_for_linux_names_the_oldest_glibc_that_serves_it(versions, glibc):
    assert hatch_build.oldest_glibc(versions) == glibc


@pytest.mark.skipif(
    sys.platform != "linux" or not library.FILE.exists(), reason="needs compiled kernels on Linux"
)
def test_the_tag_of_the_kernels_is_no_newer_than_the_machine_that_compiled_them():
    versions = hatch_build.needed_versions(library.FILE)
    if versions is None:
        pytest.skip("needs objdump")
    assert {"GLIBC_2.16"} <= versions  # aligned_alloc
    _, glibc = os.confstr("CS_GNU_LIBC_VERSION").split()
    tag = hatch_build.platform_tag([library.FILE])
    assert tag.startswith("manylinux_2_")
    assert 17 <= int(tag.split("_")[2]) <= int(glibc.split(".")[1])


def test_a_library_that_wants_another_one_is_for_no_other_machine(tmp_path, monkeypatch):
    if sys.platform != "linux":
        pytest.skip("names of libraries on Linux")

    def said(command, **_):
        text = "  NEEDED               libgomp.so.1\n    0x0d696910 0x00 03 GLIBC_2.4\n"
        return subprocess.CompletedProcess(command, 0, stdout=text)

    monkeypatch.setattr(subprocess, "run", said)
    assert hatch_build.platform_tag([tmp_path]).startswith("linux_")


def test_a_wheel_without_kernels_is_for_any_machine(tmp_path):
    program = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "ALIGNJAX_NO_KERNELS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl"), built.stdout
    names = zipfile.ZipFile(wheel).namelist()
    assert "alignjax/engines/gpu/library.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_the_cards_to_compile_for_are_those_named_or_those_here(monkeypatch):
    monkeypatch.setenv("ALIGNJAX_CUDA_ARCHITECTURES", "100, 80,90")
    assert hatch_build.architectures() == ("80", "90", "100")
    monkeypatch.setenv("ALIGNJAX_CUDA_ARCHITECTURES", "none")
    assert hatch_build.architectures() == ()
    monkeypatch.delenv("ALIGNJAX_CUDA_ARCHITECTURES")

    def cards(command, **_):
        return subprocess.CompletedProcess(command, 0, stdout="9.0\n8.6\n9.0\n7.5\n")

    monkeypatch.setattr(subprocess, "run", cards)
    assert hatch_build.architectures() == ("86", "90")


def test_without_a_cuda_compiler_or_a_card_there_are_no_kernels_for_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(hatch_build, "find_nvcc", lambda: None)
    with pytest.raises(hatch_build.Unwanted, match="no nvcc"):
        hatch_build.compile_gpu_library(ROOT / "csrc", tmp_path / "none.so")
    monkeypatch.setattr(hatch_build, "find_nvcc", lambda: "nvcc")
    monkeypatch.setenv("ALIGNJAX_CUDA_ARCHITECTURES", "none")
    with pytest.raises(hatch_build.Unwanted, match=r"no card.*ALIGNJAX_CUDA_ARCHITECTURES"):
        hatch_build.compile_gpu_library(ROOT / "csrc", tmp_path / "none.so")


def test_nvcc_is_found_where_the_environment_says(monkeypatch, tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert hatch_build.find_nvcc() == str(nvcc)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", "")
    package = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    package.parent.mkdir(parents=True)
    package.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert hatch_build.find_nvcc() == str(package)
    monkeypatch.setattr(sys, "path", [])
    assert hatch_build.find_nvcc() is None
