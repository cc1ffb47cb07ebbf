"""Compiled programs are kept for later runs, in a folder of the user's own for this kind of CPU."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vaespec_conformance.running import compilation_cache
from vaespec_conformance.running.compilation_cache import keep_programs, programs_folder


def test_a_backend_that_can_keep_programs_gets_a_private_folder_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path))
    given = []
    keep_programs(SimpleNamespace(backend=SimpleNamespace(keep_programs=given.append)))
    keep_programs(SimpleNamespace(backend=SimpleNamespace()))  # one that compiles nothing
    keep_programs(SimpleNamespace())  # a port
    (folder,) = given
    assert folder.is_relative_to(tmp_path / "vaespec" / "programs")
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_a_folder_that_can_be_written_to_a_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", str(tmp_path / "file"))
    given = []
    keep_programs(SimpleNamespace(backend=SimpleNamespace(keep_programs=given.append)))
    assert not given


def test_another_kind_of_cpu_has_programs_of_its_own(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation_cache, "CPUINFO", cpuinfo)
    folders = set()
    for text in ("flags : fma avx2\ncpu MHz : 1000", "flags : fma avx2\ncpu MHz : 2000", "flags : fma"):
        cpuinfo.write_text(text)
        folders.add(programs_folder({}))
    assert len(folders) == 2


KEPT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from vaespec_jax import backend
counted = []
jax.monitoring.register_event_listener(lambda name, **_: counted.append(name))
backend.keep_programs(Path(sys.argv[1]))
for _ in range(2):
    print(float(jax.jit(lambda x: jnp.tanh(x).sum())(jnp.arange(7.0))))
    jax.clear_caches()
print(counted.count("/jax/compilation_cache/cache_hits") > 0, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("own", [False, True])
def test_jax_reads_a_kept_program_again_unless_the_user_has_a_folder_for_them(tmp_path, own):
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")} if own else {})
    command = [sys.executable, "-c", KEPT, str(tmp_path / "ours")]
    first, second, kept = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert first == second
    assert kept == (f"False {tmp_path / 'own'}" if own else f"True {tmp_path / 'ours'}")
