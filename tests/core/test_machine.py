"""Accelerators are found in the system's files; a machine is a temporary folder."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from vaespec import machine


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A machine without accelerators: its root folder, where files may be put."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for folders in ("NVIDIA", "TPU"):
        moved = tuple((tmp_path / folder.relative_to("/"), pattern) for folder, pattern in getattr(machine, folders))
        monkeypatch.setattr(machine, folders, moved)
    elsewhere = tuple(tmp_path / path.as_posix().replace("\\", "/").lstrip("/") for path in machine.NVIDIA_ELSEWHERE)
    monkeypatch.setattr(machine, "NVIDIA_ELSEWHERE", elsewhere)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path


def put(root, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def put_gpus(root, count: int) -> None:
    put(root, *(f"proc/driver/nvidia/gpus/0000:0{i}:00.0" for i in range(count)))


def test_a_machine_without_device_files_has_no_accelerator(monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert (machine.nvidia_gpus(), machine.tpus(), machine.apple_gpu()) == (0, 0, False)


# -- NVIDIA ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_gpu_the_driver_lists_is_counted(root, count):
    put_gpus(root, count)
    put(root, "dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm")
    assert machine.nvidia_gpus() == count


def test_in_a_sandbox_without_driver_files_the_device_files_are_counted(root):
    put(root, "dev/nvidia0", "dev/nvidia3", "dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-caps/nvidia-cap1")
    assert machine.nvidia_gpus() == 2


def test_a_driver_without_a_gpu_is_not_counted(root):
    put(root, "dev/nvidiactl", "proc/driver/nvidia/version")
    (root / "proc/driver/nvidia/gpus").mkdir()
    assert machine.nvidia_gpus() == 0


@pytest.mark.parametrize("library", ["usr/lib/wsl/lib/libcuda.so.1", "C:/Windows/System32/nvcuda.dll"])
@pytest.mark.parametrize(("listed", "count"), [(None, 1), ("", 0), ("-1", 0), ("0", 1), ("1", 1), ("1,0", 1)])
def test_on_windows_and_in_its_linux_the_driver_proves_one_gpu_with_any_index(
    root, monkeypatch, library, listed, count
):
    put(root, library)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert machine.nvidia_gpus() == count


A, B = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-2f1c6f09-97c1-4d11-b8a9-0c7ff8c3bd29"
VISIBLE_OF_TWO = {
    None: 2,
    "": 0,
    "-1": 0,
    "0": 1,
    "1": 1,
    "0,1": 2,
    "1,0": 2,
    " 0, 1 ": 2,
    "1,-1,0": 1,
    "-1,0,1": 0,
    "2": 0,
    "0,7,1": 1,
    "0,,1": 1,
    "0,0": 0,
    "none": 0,
    "NoDevFiles": 0,
    A: 1,
    f"{A},{B}": 2,
    "GPU-8932f937": 1,
    f"{A},{A}": 0,
    f"{A},-1,{B}": 1,
    f"MIG-{A}/1/0": 1,
}


@pytest.mark.parametrize("listed", VISIBLE_OF_TWO)
def test_cuda_visible_devices_hides_gpus_as_cuda_reads_it(root, monkeypatch, listed):
    put_gpus(root, 2)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert machine.nvidia_gpus() == VISIBLE_OF_TWO[listed]


@pytest.mark.parametrize("listed", VISIBLE_OF_TWO)
def test_pytorch_reads_cuda_visible_devices_as_we_do(monkeypatch, listed):
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    named = torch.cuda._parse_visible_devices()
    beyond = [i for i, index in enumerate(named) if isinstance(index, int) and index >= 2]
    assert len(named[: beyond[0]] if beyond else named) == VISIBLE_OF_TWO[listed]


def test_cuda_visible_devices_adds_no_gpus_to_a_machine_without_any(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert machine.nvidia_gpus() == 0


def test_cuda_visible_devices_with_more_names_than_gpus_adds_none(root, monkeypatch):
    put_gpus(root, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{A},{B}")
    assert machine.nvidia_gpus() == 1


# -- TPU and Apple -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["dev/accel", "dev/vfio/"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_chips_of_a_tpu_are_counted_by_their_device_files(root, folder, count):
    put(root, "dev/vfio/vfio", *(f"{folder}{i}" for i in range(count)))
    assert machine.tpus() == count


def test_chips_of_other_makers_are_not_counted_as_tpus(root):
    put(root, "dev/accel/accel0", "dev/vfio/vfio")
    assert machine.tpus() == 0


@pytest.mark.parametrize(
    ("system", "chip", "has_gpu"),
    [("Darwin", "arm64", True), ("Darwin", "x86_64", False), ("Linux", "aarch64", False), ("Linux", "arm64", False)],
)
def test_only_a_mac_with_apples_own_chip_has_metal(monkeypatch, system, chip, has_gpu):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: chip)
    assert machine.apple_gpu() is has_gpu


# -- CPUs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_bf16 amx_tile", True), (None, False)],
)
def test_fast_products_of_bfloat16_are_read_from_the_flags_of_the_cpu(root, flags, fast):
    if flags is not None:
        (root / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} flush_l1d\n")
    assert machine.multiplies_bfloat16.__wrapped__() is fast


# -- memory that looks like a disk -------------------------------------------------------------------------------


def test_a_folder_on_a_tmpfs_is_memory(tmp_path, monkeypatch):
    mounts = [SimpleNamespace(mountpoint=str(tmp_path), fstype="tmpfs"), SimpleNamespace(mountpoint="/", fstype="ext4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    (tmp_path / "inside").mkdir()
    assert machine.stored_in_memory(tmp_path / "inside")
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts[1:])
    assert not machine.stored_in_memory(tmp_path / "inside")
    with pytest.raises(FileNotFoundError):
        machine.stored_in_memory(tmp_path / "nowhere")


def test_the_shared_memory_of_linux_is_memory():
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    if mounts.get("/dev/shm") != "tmpfs":
        pytest.skip("no /dev/shm here")
    assert machine.stored_in_memory("/dev/shm")
