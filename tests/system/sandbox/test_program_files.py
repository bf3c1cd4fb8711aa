"""Files that a program finds in its sandbox: modules beside it, certificates of the person."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aios.agents import connect
from aios.shell.launch import System

SHARED_TOOL = """
import helper
from aios.agents.tools import tool


@tool
def word() -> str:
    'What the module beside says.'
    return helper.WORD
"""


def test_a_program_imports_what_is_beside_it(
    boot: Callable[..., System], program: Callable[[str], str], tmp_path: Path, homes: Path
) -> None:
    (tmp_path / "helper.py").write_text("WORD = 'beside'\n")
    (tmp_path / "box.py").write_text(SHARED_TOOL)
    path = Path(program("import helper\nreturn helper.WORD"))
    (homes / "link.py").symlink_to(path)
    (homes / "alone.py").write_text(path.read_text())
    system = boot(slots=1, ctx=256, tools={"word": {"program": str(tmp_path / "box.py")}})
    with connect(system.home) as aios:
        for each in (path, homes / "link.py"):
            assert aios.wait(aios.spawn(str(each)), timeout=20).result == "beside"
        assert aios.call_tool("word").result().value == "beside"
        pid = aios.spawn(str(homes / "alone.py"))  # a home is below that folder
        assert "No module named 'helper'" in aios.wait(pid, timeout=20).result["error"]
        assert "put all of them into a folder of their own" in aios.log(pid).data.decode()


CERTIFICATES = """
from pathlib import Path
return Path(os.environ["SSL_CERT_FILE"]).read_text(), os.listdir(os.environ["SSL_CERT_DIR"])
"""


def test_certificates_that_the_person_named_are_read(
    boot: Callable[..., System], program: Callable[[str], str], tmp_path: Path, homes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    (certificates / "own.pem").write_text("whom to trust")
    monkeypatch.chdir(certificates)
    monkeypatch.setenv("SSL_CERT_FILE", "own.pem")
    monkeypatch.setenv("SSL_CERT_DIR", str(certificates))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(homes))
    system = boot(slots=1, ctx=256)
    with connect(system.home) as aios:
        end_ = aios.wait(aios.spawn(program(CERTIFICATES)), timeout=20)
    assert end_.result == ["whom to trust", ["own.pem"]]
    assert f"init: no agent reads {homes}, which has a home in it" in system.log.read_text()
