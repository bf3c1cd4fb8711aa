"""Paths behind many links are looked for at a cost that is bounded."""

from __future__ import annotations

from pathlib import Path

from turns import counted

from aios.kernel.lib.linux import real
from aios.kernel.sandbox.sandbox import SandboxPolicy, can_read


def test_a_program_behind_many_links_is_looked_for_as_linux_does(tmp_path: Path) -> None:
    """Each leads back to the folder, by a long way: Python would go all of them."""
    way = f"{tmp_path}/" + "./" * 1500
    for number in range(200):
        (tmp_path / f"{number:x}").symlink_to(way)
    path = f"{tmp_path}/" + "/".join(f"{number:x}" for number in range(200))
    walls = SandboxPolicy(read=[f"{path}/of"], write=[str(tmp_path)])
    assert can_read(walls, tmp_path, 1, str(tmp_path))
    with counted(20_000):
        assert real(path) == ""
        assert real(f"{tmp_path}/1/2/3") == str(tmp_path)
        assert real(f"{tmp_path}/1/none") == f"{tmp_path}/none"
        assert real(f"{tmp_path}/none/none") == ""
        assert real(f"{tmp_path}/none/..") == ""
        assert real("\0") == ""
        assert not can_read(walls, tmp_path, 1, "/none/of/those")
