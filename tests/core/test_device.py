"What the device of a process is, and what its memory and number formats are."

import re
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from ft_notebooks.core import cpu_threads, device
from ft_notebooks.core.device import hardware


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("local_rank, cards, expected", [("0", 4, "cuda:0"), ("3", 4, "cuda:3"), ("3", 1, "cuda:0")])
def test_each_process_has_the_card_of_its_local_rank(monkeypatch, local_rank, cards, expected):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    sizes = {index: (index + 1) * 2**30 for index in range(cards)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(total_memory=sizes[i]))
    hw = hardware()
    assert hw.device == expected
    assert hw.memory == sizes[int(expected[-1])]


def test_apples_device_computes_in_float32(monkeypatch, no_card):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    hw = hardware()
    assert (hw.device, hw.dtype, hw.bf16) == ("mps", torch.float32, False)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="compares with /proc/cpuinfo")
def test_the_kernel_and_torch_agree_on_bf16_instructions(no_card):
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert hardware().bf16 is (not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"}))


@pytest.mark.parametrize(
    "line, file, text, expected",
    [
        ("0::/job", "job/memory.max", "1000", 1000),  # version 2, own limit
        ("0::/job/step", "job/memory.max", "1000", 1000),  # version 2, the parent's limit
        ("0::/", "memory.max", "max", None),  # version 2, no limit
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", "2000\n", 2000),  # version 1
        ("4:memory:/job", "memory/job/memory.limit_in_bytes", str(2**63 - 4096), None),  # version 1, no limit
        ("5:cpu:/job", "cpu/job/memory.limit_in_bytes", "3000", None),  # another controller
    ],
)
def test_memory_is_what_the_control_group_allows(monkeypatch, no_card, tmp_path, line, file, text, expected):
    monkeypatch.setattr(cpu_threads, "_ROOT", tmp_path)
    for name, content in {"proc/self/cgroup": line, f"sys/fs/cgroup/{file}": text}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    assert hardware().memory == (expected or psutil.virtual_memory().total)


def test_memory_that_this_process_holds_is_available_to_it(monkeypatch):
    monkeypatch.setattr(device, "hardware", lambda: SimpleNamespace(memory=1e15))
    process, free = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3e9)), SimpleNamespace(available=4e9)
    monkeypatch.setattr(device, "psutil", SimpleNamespace(virtual_memory=lambda: free, Process=lambda: process))
    assert device.available_memory(torch.device("cpu")) == 7e9
    monkeypatch.setattr(device, "hardware", lambda: SimpleNamespace(memory=5e9))
    assert device.available_memory(torch.device("cpu")) == 5e9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6e9, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2e9)
    assert device.available_memory(torch.device("cuda")) == 8e9


def test_no_other_module_asks_cuda_itself():
    package = Path(device.__file__).parents[1]
    texts = {file.relative_to(package).as_posix(): file.read_text(encoding="utf-8") for file in package.rglob("*.py")}
    assert [file for file, text in texts.items() if re.search(r"torch\.(cuda|mps|xpu)\b", text)] == ["core/device.py"]
