"""The one table that is the ABI: every system call, its message, the right it needs, its reply.

Handlers (kernel), stubs (agents) and docs/abi.md are checked against this table by tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import acc, connection, kernel, llm, mem, msg, proc, sto, tool
from .base import Done, Empty, Message, Reply


class Row(NamedTuple):
    name: str
    args: type[Message]
    right: str  # what the access manager asks for
    reply: Any  # the type of the final reply's body
    doc: str
    piece: type[Reply] | None = None  # the type of the replies before it

    @property
    def effect(self) -> bool:
        """Whether it is done once, should the kernel die, and its reply kept until it was heard.
        What has none is done again."""
        return self.name in EFFECTS

    @property
    def changes(self) -> bool:
        """Whether something is another afterwards: an intent is recorded before, the outcome after.
        What changes nothing is recorded once."""
        return self.name not in READS

    @property
    def outward(self) -> bool:
        """Whether it reaches beyond the kernel: what it asks for happens when its intent would
        survive a power cut."""
        return self.name in OUTWARD

    @property
    def frees(self) -> bool:
        """Whether it is served on a full disk: it ends something, or makes room."""
        return self.name in FREES


ROWS: tuple[Row, ...] = (
    Row("hello", connection.Hello, "none", connection.Welcome, "Open the connection."),
    Row(
        "call.cancel",
        connection.Cancel,
        "none",
        connection.Cancelled,
        "End another call of this connection.",
    ),
    Row("proc.spawn", proc.Spawn, "proc.spawn", proc.Spawned, "Start an agent as a child process."),
    Row("proc.exit", proc.Exit, "none", Done, "Report code and result; the process then ends."),
    Row("proc.wait", proc.Wait, "proc.wait", proc.Exited, "Wait for a child's end."),
    Row("proc.kill", proc.Kill, "proc.control", Done, "Send a signal."),
    Row("proc.nice", proc.SetNice, "proc.control", proc.NiceReply, "Set its share of the model."),
    Row("proc.limits", proc.SetLimits, "proc.control", proc.Limits, "Read or set limits."),
    Row("proc.ps", proc.Ps, "proc.list", list[proc.ProcessInfo], "List processes."),
    Row("proc.whoami", Empty, "none", proc.ProcessInfo, "The caller's own row."),
    Row("proc.log", proc.Log, "proc.log", proc.LogPart, "Read what an agent printed."),
    Row("llm.open", llm.Open, "llm", llm.Opened, "Open a context."),
    Row("llm.append", llm.Append, "llm", llm.Appended, "Append to a context."),
    Row(
        "llm.generate",
        llm.Generate,
        "llm",
        llm.Result,
        "Generate, in a context or at once.",
        llm.Piece,
    ),
    Row("llm.tokenize", llm.Tokenize, "llm", llm.Tokens, "Text or messages to token ids."),
    Row("llm.detokenize", llm.Detokenize, "llm", llm.Text, "Token ids to text."),
    Row("llm.fork", llm.Fork, "llm", llm.Opened, "Copy a context."),
    Row("llm.checkpoint", llm.Checkpoint, "llm", llm.Used, "Remember a context's state."),
    Row("llm.rollback", llm.Rollback, "llm", llm.Used, "Go back to a checkpoint."),
    Row("llm.contexts", Empty, "llm", list[llm.ContextInfo], "List contexts, those asleep too."),
    Row("llm.close", llm.Close, "llm", Done, "Close a context and free what it holds."),
    Row("msg.send", msg.Send, "msg.send", Done, "Put a message into a process's mailbox."),
    Row("msg.recv", msg.Recv, "msg.recv", msg.Mail, "Take the oldest message, or wait for one."),
    Row("mem.put", mem.Put, "mem.write", Done, "Set items of the agent's memory."),
    Row("mem.get", mem.Get, "mem.read", mem.Items, "Read items by their keys."),
    Row("mem.delete", mem.Delete, "mem.write", mem.Deleted, "Remove items."),
    Row("mem.scan", mem.Scan, "mem.read", mem.Scanned, "Read items in the order of their keys."),
    Row("mem.clear", mem.Clear, "mem.write", Done, "Remove all items of a space, or of all."),
    Row("mem.spaces", mem.Spaces, "mem.read", list[mem.Memory], "What it holds, and where."),
    Row("mem.keep", mem.Keep, "mem.keep", Done, "Have the memory outlive the agent, or not."),
    Row("mem.log", mem.Interactions, "mem.log", mem.LogPage, "Read the interaction log."),
    Row("sto.put", sto.Put, "sto.write", sto.Version, "Write a version of an object."),
    Row("sto.batch", sto.Batch, "sto.write", list[sto.Version], "Put and delete, all or none."),
    Row("sto.upload", sto.Upload, "sto.upload", sto.Uploaded, "Send a piece of a large content."),
    Row("sto.get", sto.Get, "sto.read", sto.Content, "Read a version, or a part of it."),
    Row("sto.list", sto.List, "sto.read", sto.Listed, "List objects."),
    Row("sto.history", sto.History, "sto.read", list[sto.Version], "List an object's versions."),
    Row("sto.delete", sto.Delete, "sto.write", sto.Version, "Delete an object; its history stays."),
    Row("sto.rollback", sto.Restore, "sto.write", sto.Version, "Write an earlier version again."),
    Row("sto.purge", sto.Purge, "sto.own", sto.Version, "Drop an object with its history."),
    Row("sto.share", sto.Share, "sto.own", Done, "Let others read or write objects."),
    Row("sto.shares", sto.Shares, "sto.own", list[sto.Grant], "List what is shared."),
    Row("sto.owners", sto.Owners, "sto.read", sto.Holdings, "Who holds how much."),
    Row("sto.watch", sto.Watch, "sto.read", Done, "Follow changes.", sto.Version),
    Row("sto.verify", sto.Verify, "sto.admin", sto.Verified, "Check everything.", sto.Progress),
    Row("sto.compact", sto.Compact, "sto.admin", sto.Compacted, "Make room.", sto.Progress),
    Row("sto.backup", sto.Backup, "sto.admin", sto.BackedUp, "Copy all of it while it is used."),
    Row("sto.search", sto.Search, "sto.read", sto.Hits, "Find passages of what is stored."),
    Row("sto.index", sto.Index, "sto.read", sto.IndexReport, "How far the index is."),
    Row("sto.reindex", sto.Reindex, "sto.admin", Done, "Make the index anew."),
    Row("tool.list", Empty, "tool.list", tool.Tools, "List the tools that the caller may call."),
    Row("tool.call", tool.CallTool, "tool.call", tool.ToolResult, "Call.", tool.ToolProgress),
    Row("tool.offer", tool.Offer, "none", Done, "Of a worker: say which tools it serves."),
    Row("tool.serve", tool.Serve, "none", Done, "Of a worker: take jobs.", tool.Job),
    Row("tool.progress", tool.JobProgress, "none", Done, "Of a worker: how far a job is."),
    Row("tool.done", tool.JobDone, "none", Done, "Of a worker: how a job ended."),
    Row("acc.groups", Empty, "acc.groups", acc.Policy, "Read all groups."),
    Row("acc.set", acc.SetGroup, "acc.groups", Done, "Make, change or remove a group."),
    Row("acc.grant", acc.Grant, "acc.grant", acc.Granted, "Hand on a right."),
    Row("acc.revoke", acc.Revoke, "acc.grant", Done, "Take a grant back."),
    Row("acc.grants", Empty, "acc.read", list[acc.GrantRow], "List grants."),
    Row("acc.check", acc.Check, "acc.read", acc.Verdict, "What the gate would say, and why."),
    Row("acc.ask", acc.Questions, "acc.answer", Done, "Follow what is asked.", acc.Question),
    Row("acc.answer", acc.Answer, "acc.answer", Done, "Answer what is asked."),
    Row("key.allow", acc.KeyAllow, "acc.keys", Done, "Let a key's owner connect by tcp."),
    Row("key.remove", acc.KeyRemove, "acc.keys", Done, "Take a key out of the list."),
    Row("key.list", Empty, "acc.keys", acc.Keys, "The keys, and where the kernel listens."),
    Row("kernel.status", Empty, "kernel.read", kernel.Status, "What runs: model, slots, policy."),
    Row("kernel.stats", Empty, "kernel.read", kernel.Stats, "Counters and timings since boot."),
    Row("kernel.events", kernel.Events, "kernel.read", Done, "Follow what happens.", kernel.Event),
    Row(
        "kernel.policy",
        kernel.SetPolicy,
        "kernel.control",
        kernel.Policy,
        "Read or set the policy.",
    ),
    Row(
        "kernel.check", Empty, "kernel.control", kernel.CheckReport, "Test the kernel's invariants."
    ),
    Row("kernel.stop", Empty, "kernel.control", Done, "End every agent, then the system."),
)  # fmt: skip

EFFECTS = frozenset(
    {"proc.spawn", "proc.exit", "proc.wait", "proc.nice", "proc.limits", "llm.open", "llm.append",
     "llm.generate", "llm.fork", "llm.checkpoint", "llm.rollback", "llm.close", "msg.send",
     "msg.recv", "tool.call", "acc.grant"}
)  # fmt: skip

READS = frozenset(
    {"hello", "proc.ps", "proc.whoami", "proc.log", "llm.tokenize", "llm.detokenize",
     "llm.contexts", "mem.get", "mem.scan", "mem.spaces", "mem.log", "sto.get", "sto.list",
     "sto.history", "sto.shares", "sto.owners", "sto.watch", "sto.verify", "sto.search",
     "sto.index", "tool.list", "tool.offer", "tool.serve", "tool.progress", "acc.groups",
     "acc.grants", "acc.check", "acc.ask", "key.list", "kernel.status", "kernel.stats",
     "kernel.events", "kernel.check"}
)  # fmt: skip
OUTWARD = frozenset({"proc.spawn", "proc.kill", "kernel.stop"})
FREES = frozenset(
    {"hello", "call.cancel", "proc.exit", "proc.wait", "proc.kill", "llm.close", "msg.recv",
     "mem.delete", "mem.clear", "sto.delete", "sto.purge", "sto.compact", "tool.done", "acc.revoke",
     "key.remove", "kernel.stop"}
)  # fmt: skip

TABLE: dict[str, Row] = {row.name: row for row in ROWS}
RIGHTS = frozenset(row.right for row in ROWS) - {"none"} | {"llm.raw"}  # the last of some arguments
