"""How the code reads: docstrings and comments, the length of functions and files, class names."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_imports import ROOT, imports, sources

# The packages and files whose prose is done. The list grows; nothing leaves it.
DONE = (
    "kernel/access", "kernel/audit", "kernel/boot.py", "kernel/config.py", "kernel/core",
    "kernel/entry/envelope.py", "kernel/entry/followers.py",
    "kernel/entry/listener.py", "kernel/entry/replies.py", "kernel/entry/zmtp.py",
    "kernel/events.py", "kernel/gateway", "kernel/hello.py", "kernel/index", "kernel/init",
    "kernel/journal.py", "kernel/ledger", "kernel/lib", "kernel/loop.py", "kernel/manifests.py",
    "kernel/memory", "kernel/process.py", "kernel/rules.py", "kernel/sandbox", "kernel/storage",
    "kernel/store", "tests/audit_logs.py", "tests/batcher_harness.py", "tests/bucket.py",
    "tests/deterministic_engine.py", "tests/fake_slot.py", "tests/gate_model.py",
    "tests/index_documents.py", "tests/index_harness.py", "tests/models.py", "tests/probes",
    "tests/test_access.py", "tests/test_access_cli.py", "tests/test_architectures.py",
    "tests/test_audit.py", "tests/test_audit_calls.py", "tests/test_audit_cli.py",
    "tests/test_audit_log.py", "tests/test_backup.py", "tests/test_bad_stores.py",
    "tests/test_batcher.py", "tests/test_blobs.py", "tests/test_boot.py", "tests/test_certify.py",
    "tests/test_cgroup.py", "tests/test_chat_templates.py", "tests/test_coalesce.py",
    "tests/test_context_rows.py", "tests/test_disk.py", "tests/test_embedder.py",
    "tests/test_engine.py", "tests/test_exactness.py", "tests/test_fair_queue.py",
    "tests/test_field_rows.py", "tests/test_frames.py", "tests/test_grammar.py",
    "tests/test_index.py", "tests/test_index_machine.py", "tests/test_index_models.py",
    "tests/test_index_process.py", "tests/test_interactions.py", "tests/test_journal.py",
    "tests/test_kernel_death.py", "tests/test_listener.py", "tests/test_memory.py",
    "tests/test_memory_cli.py", "tests/test_memory_machine.py", "tests/test_merkle.py",
    "tests/test_model.py", "tests/test_outputs.py", "tests/test_path_observer.py",
    "tests/test_policy.py", "tests/test_prefix_cache.py", "tests/test_prefix_cache_machine.py",
    "tests/test_private.py", "tests/test_prose.py", "tests/test_remote.py",
    "tests/test_retrieval.py", "tests/test_rights.py", "tests/test_sandbox.py",
    "tests/test_seal.py", "tests/test_snapshots.py", "tests/test_start.py",
    "tests/test_state_layout.py", "tests/test_step_composition.py", "tests/test_storage.py",
    "tests/test_storage_cli.py", "tests/test_storage_machine.py", "tests/test_store.py",
    "tests/test_swapping.py", "tests/test_sweeper.py", "tests/test_table.py",
    "tests/test_templates_at_work.py", "tests/test_text.py", "tests/test_turns.py",
    "tests/test_zmtp.py",
)  # fmt: skip
RIDDLE = re.compile(r"(?:^|[.!?]\s+)(?:What|Whether|Of|Those|Likewise)\b")
MAX_FUNCTION_LINES, MAX_FILE_LINES = 50, 400
PROCESSES = (
    "kernel.__main__", "kernel.audit.__main__", "kernel.core.__main__", "kernel.core.fit",
    "kernel.core.renderer", "kernel.core.grammar_probe", "kernel.gateway.__main__",
    "kernel.index.__main__", "kernel.init.__main__", "kernel.init.keyring",
)  # fmt: skip

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def texts(path: Path) -> Iterator[str]:
    """The docstrings and comments of a file."""
    for node in nodes(path):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield text
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.removeprefix("#").strip()


@pytest.mark.parametrize("done", DONE)
def test_no_sentence_is_a_riddle(done: str) -> None:
    paths = sources(done) or [ROOT / done]
    assert [
        (name_of(path), text) for path in paths for text in texts(path) if RIDDLE.search(text)
    ] == []


@pytest.mark.parametrize("part", ["kernel", "agents", "shell", "syscalls", "bench", "examples"])
def test_no_docstring_begins_with_a_riddle(part: str) -> None:
    begin = [
        (name_of(path), text)
        for path in sources(part)
        for node in nodes(path)
        if isinstance(node, Documented) and (text := ast.get_docstring(node))
        if RIDDLE.match(text)
    ]
    assert begin == []


def test_a_riddle_is_found_wherever_it_is() -> None:
    for text in ("What it is.", "It is. Whether it was, is gone.", "Keep it.\nOf all, the last."):
        assert RIDDLE.search(text)
    for text in ("Tell whether it is.", "Officers come first.", "It is what it is."):
        assert not RIDDLE.search(text)


def test_functions_fit_a_screen() -> None:
    long = {
        f"{name_of(path)} {node.name}"
        for path in sources("kernel")
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == set(), "shorten these"


def test_files_are_short() -> None:
    long = {
        name_of(path)
        for path in sources("kernel")
        if len(path.read_text().splitlines()) > MAX_FILE_LINES
    }
    assert long == set(), "split these"


def modules() -> dict[str, Path]:
    """The kernel's modules by their names without `aios.`."""
    found = {}
    for path in sources("kernel"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str) -> set[str]:
    """The kernel's modules that the process of one imports, itself and later imports included."""
    known, found, todo = modules(), set[str](), [module]
    while todo:
        name = todo.pop()
        if name in known and name not in found:
            found.add(name)
            todo += [each.removeprefix("aios.") for each in imports(known[name])]
    return found


def test_a_class_name_has_one_meaning_in_a_process() -> None:
    known, same = modules(), set()
    for process in PROCESSES:
        places: dict[str, set[str]] = defaultdict(set)
        for module in imported(process):
            for node in ast.parse(known[module].read_text()).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].add(module)
        same |= {name for name, found in places.items() if len(found) > 1}
    assert same == set(), "rename one of each"


def test_the_modules_of_a_process_are_found() -> None:
    """The test above rests on this."""
    assert imported("kernel.gateway.__main__") >= {
        "kernel.gateway.protocol",
        "kernel.lib.log_stream",
    }
    assert "kernel.processes.lifecycle" in imported("kernel.__main__")
    assert "kernel.boot" not in imported("kernel.init.__main__")
