"""The handlers of system calls: which part of the kernel serves which call.

A handler returns the body of the final reply; or, where that comes later, a coroutine or a Wait.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from aios.syscalls import acc, connection, kernel, llm, msg, proc, sto, tool
from aios.syscalls.base import Done, Empty
from aios.syscalls.errors import BadInput

from .core.protocol import TokenizeRequest
from .entry.call import Call
from .entry.trap import Handler
from .llm.contexts import Context
from .process import Process, check_principal
from .status import stats, status

if TYPE_CHECKING:
    from .boot import Kernel


def handlers(k: Kernel) -> dict[str, Handler]:
    """Return the handlers by call: a method of the manager whose call it is, or a function below,
    where the manager does not know it as a call."""
    return {
        **_process_calls(k), **_model_calls(k), **_data_calls(k), **_access_calls(k),
        **_kernel_calls(k),
    }  # fmt: skip


def _process_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "call.cancel": partial(call_cancel, k),
        "proc.spawn": k.lifecycle.spawn,
        "proc.exit": partial(proc_exit, k),
        "proc.wait": k.waiters.wait,
        "proc.kill": partial(proc_kill, k),
        "proc.nice": partial(proc_nice, k),
        "proc.limits": partial(proc_limits, k),
        "proc.ps": partial(proc_ps, k),
        "proc.whoami": partial(proc_whoami, k),
        "proc.log": partial(proc_log, k),
        "msg.send": partial(msg_send, k),
        "msg.recv": partial(msg_recv, k),
    }


def _model_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "llm.open": partial(llm_open, k),
        "llm.append": k.generations.append,
        "llm.generate": k.generations.generate,
        "llm.tokenize": partial(llm_tokenize, k),
        "llm.detokenize": partial(llm_detokenize, k),
        "llm.fork": partial(llm_fork, k),
        "llm.checkpoint": partial(llm_checkpoint, k),
        "llm.rollback": partial(llm_rollback, k),
        "llm.contexts": partial(llm_contexts, k),
        "llm.close": partial(llm_close, k),
    }


def _data_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "mem.put": k.memory.put,
        "mem.get": k.memory.get,
        "mem.delete": k.memory.delete,
        "mem.scan": k.memory.scan,
        "mem.clear": k.memory.clear,
        "mem.spaces": k.memory.spaces,
        "mem.keep": k.memory.keep,
        "mem.log": k.interactions.read,
        "sto.put": partial(sto_put, k),
        "sto.batch": partial(sto_batch, k),
        "sto.upload": k.storage.uploads.append,
        "sto.get": k.storage.get,
        "sto.list": k.storage.objects,
        "sto.history": k.storage.history,
        "sto.delete": partial(sto_delete, k),
        "sto.rollback": k.storage.rollback,
        "sto.purge": k.storage.purge,
        "sto.share": k.storage.share,
        "sto.shares": k.storage.list_shares,
        "sto.owners": k.storage.owners,
        "sto.watch": k.storage.watch,
        "sto.verify": partial(sto_verify, k),
        "sto.compact": partial(sto_compact, k),
        "sto.backup": partial(sto_backup, k),
        "sto.search": partial(sto_search, k),
        "sto.index": partial(sto_index, k),
        "sto.reindex": partial(sto_reindex, k),
    }


def _access_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "tool.list": partial(tool_list, k),
        "tool.call": k.tools.call,
        "tool.offer": partial(tool_offer, k),
        "tool.serve": k.tools.serve,
        "tool.progress": partial(tool_progress, k),
        "tool.done": partial(tool_done, k),
        "acc.groups": partial(acc_groups, k),
        "acc.set": partial(acc_set, k),
        "acc.grant": partial(acc_grant, k),
        "acc.revoke": partial(acc_revoke, k),
        "acc.grants": partial(acc_grants, k),
        "acc.check": partial(acc_check, k),
        "acc.ask": partial(acc_ask, k),
        "acc.answer": k.approvals.answer,
        "key.allow": partial(key_allow, k),
        "key.remove": partial(key_remove, k),
        "key.list": partial(key_list, k),
    }


def _kernel_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "kernel.status": partial(status, k),
        "kernel.stats": partial(stats, k),
        "kernel.events": partial(kernel_events, k),
        "kernel.policy": partial(kernel_policy, k),
        "kernel.check": partial(kernel_check, k),
        "kernel.stop": partial(kernel_stop, k),
    }


def _target(k: Kernel, call: Call, pid: int | None) -> Process:
    return call.process if pid is None else k.table.get(pid)


def call_cancel(k: Kernel, call: Call, args: connection.Cancel) -> connection.CancelReply:
    other = call.session.calls.get(args.call)
    if other is None or other is call:
        return connection.CancelReply(found=False)
    other.cancel()
    return connection.CancelReply(found=True)


def proc_exit(k: Kernel, call: Call, args: proc.Exit) -> Done:
    call.process.code = args.code
    call.process.result = msgspec.msgpack.encode(args.result)
    call.process.reported = True
    call.process.touch()
    k.lifecycle.leave(call)
    return Done()


def proc_kill(k: Kernel, call: Call, args: proc.Kill) -> Done:
    k.lifecycle.signal(k.table.get(args.pid), args.signal)
    return Done()


def proc_nice(k: Kernel, call: Call, args: proc.SetNice) -> proc.NiceReply:
    process = _target(k, call, args.pid)
    process.nice = args.nice
    process.touch()
    k.scheduler.renice(process.contexts, args.nice)
    return proc.NiceReply(nice=args.nice)


def proc_limits(k: Kernel, call: Call, args: proc.SetLimits) -> proc.Limits:
    process = _target(k, call, args.pid)
    if args.limits is not None:
        k.lifecycle.set_limits(call.process, process, args.limits)
    return process.limits


def proc_ps(k: Kernel, call: Call, args: proc.Ps) -> list[proc.ProcessInfo]:
    now = time.monotonic()
    shown = (p for p in k.table.rows.values() if args.all or (p.alive and p.kind != "client"))
    return [process.info(now) for process in shown]


def proc_whoami(k: Kernel, call: Call, args: Empty) -> proc.ProcessInfo:
    return call.process.info(time.monotonic())


def proc_log(k: Kernel, call: Call, args: proc.Log) -> Any:
    call.process.hear(k.table.get(args.pid))
    return k.logs.read(call, args.pid, args.offset, args.wait)


def llm_open(k: Kernel, call: Call, args: llm.Open) -> llm.Opened:
    if args.owner is not None and args.name is None:
        raise BadInput("an owner's contexts are found by name", "give its name")
    if args.owner is not None and args.owner.startswith("/"):
        check_principal(args.owner)
    context = k.contexts.open(
        call.process, args.system, args.name, args.on_full, principal=args.owner
    )
    return _opened(k, call, context)


def _opened(k: Kernel, call: Call, context: Context) -> llm.Opened:
    call.durable = context.name is not None
    return llm.Opened(ctx=context.id, window=k.contexts.window, used=context.used)


def llm_fork(k: Kernel, call: Call, args: llm.Fork) -> llm.Opened:
    context = k.contexts.get(call.process, args.ctx)
    return _opened(k, call, k.contexts.fork(context, call.process, args.name))


def llm_checkpoint(k: Kernel, call: Call, args: llm.Checkpoint) -> llm.Used:
    context = k.contexts.get(call.process, args.ctx)
    k.contexts.checkpoint(context, args.name)
    return _used(k, call, context)


def llm_rollback(k: Kernel, call: Call, args: llm.Rollback) -> llm.Used:
    context = k.contexts.get(call.process, args.ctx)
    k.contexts.rollback(context, args.name)
    return _used(k, call, context)


def _used(k: Kernel, call: Call, context: Context) -> llm.Used:
    call.durable = context.name is not None
    return llm.Used(used=context.used, window=k.contexts.window)


def llm_contexts(k: Kernel, call: Call, args: Empty) -> list[llm.ContextInfo]:
    return [context.info() for context in k.contexts.visible(call.process)]


async def llm_tokenize(k: Kernel, call: Call, args: llm.Tokenize) -> llm.Tokens:
    if (args.text is None) == (args.messages is None):
        raise BadInput("give text or messages, one of them")
    messages: list[tuple[str, str]] = [
        (message.role, message.content) for message in args.messages or []
    ]
    encoded = await k.prompts.question(call.process, TokenizeRequest, args.text, messages)
    return llm.Tokens(tokens=encoded.tokens)


async def llm_detokenize(k: Kernel, call: Call, args: llm.Detokenize) -> llm.Text:
    return llm.Text(text=await k.prompts.detokenize(call.process, args.tokens))


def llm_close(k: Kernel, call: Call, args: llm.Close) -> Done:
    context = k.contexts.get(call.process, args.ctx)
    call.durable = context.name is not None
    k.contexts.close(context, forget=args.forget)
    return Done()


def msg_send(k: Kernel, call: Call, args: msg.Send) -> Done:
    receiver = k.table.find(args.to, call.process.principal)
    k.mailroom.send(call.process, receiver, args.body)
    return Done()


def msg_recv(k: Kernel, call: Call, args: msg.Recv) -> Any:
    return k.mailroom.receive(call, args.sender, args.timeout)


def sto_put(k: Kernel, call: Call, args: sto.Put) -> Any:
    change = sto.Change(
        path=args.path, data=args.data, upload=args.upload, tags=args.tags, media=args.media,
        if_version=args.if_version,
    )  # fmt: skip
    return k.storage.change_one(call, args.owner, change)


def sto_batch(k: Kernel, call: Call, args: sto.Batch) -> Any:
    return k.storage.change(call, args.owner, args.changes)


def sto_delete(k: Kernel, call: Call, args: sto.Delete) -> Any:
    change = sto.Change(args.path, delete=True, if_version=args.if_version)
    return k.storage.change_one(call, args.owner, change)


def sto_verify(k: Kernel, call: Call, args: sto.Verify) -> Any:
    return k.maintenance.verify(call)


def sto_compact(k: Kernel, call: Call, args: sto.Compact) -> Any:
    return k.maintenance.compact(call, args.keep)


def sto_backup(k: Kernel, call: Call, args: sto.Backup) -> Any:
    return k.maintenance.backup(call, Path(args.target))


def sto_search(k: Kernel, call: Call, args: sto.Search) -> Any:
    scopes = k.storage.scopes(call, args.owner, args.path)
    return k.index.search(call, args, k.gate.readable(call.process, scopes))


def sto_index(k: Kernel, call: Call, args: sto.Index) -> sto.IndexReport:
    return k.index.report()


def sto_reindex(k: Kernel, call: Call, args: sto.Reindex) -> Done:
    k.index.rebuild()
    return Done()


def tool_list(k: Kernel, call: Call, args: Empty) -> Any:
    return k.tools.tell(call)


def tool_offer(k: Kernel, call: Call, args: tool.Offer) -> Done:
    k.tools.offer(call.process, args)
    return Done()


def tool_progress(k: Kernel, call: Call, args: tool.JobProgress) -> Done:
    k.tools.progress(call.process, args)
    return Done()


def tool_done(k: Kernel, call: Call, args: tool.JobDone) -> Done:
    k.tools.done(call.process, args)
    return Done()


def acc_groups(k: Kernel, call: Call, args: Empty) -> acc.Groups:
    return acc.Groups(groups=k.grants.groups)


def acc_set(k: Kernel, call: Call, args: acc.SetGroup) -> Done:
    k.grants.set_group(args.name, args.group)
    return Done()


def acc_grant(k: Kernel, call: Call, args: acc.Grant) -> acc.Granted:
    return k.gate.grant(call.process, args)


def acc_revoke(k: Kernel, call: Call, args: acc.Revoke) -> Done:
    k.grants.revoke(call.process, args.id)
    return Done()


def acc_grants(k: Kernel, call: Call, args: Empty) -> list[acc.GrantRow]:
    return k.grants.visible(call.process)


def acc_check(k: Kernel, call: Call, args: acc.Check) -> acc.Verdict:
    return k.gate.explain(call.process, args)


def acc_ask(k: Kernel, call: Call, args: acc.Questions) -> Any:
    return k.approvals.follow(call)


def key_allow(k: Kernel, call: Call, args: acc.KeyAllow) -> Done:
    k.gateway.allow(args)
    return Done()


def key_remove(k: Kernel, call: Call, args: acc.KeyRemove) -> Done:
    k.gateway.remove(args.name)
    return Done()


def key_list(k: Kernel, call: Call, args: Empty) -> acc.Keys:
    return k.gateway.list_keys()


def kernel_events(k: Kernel, call: Call, args: kernel.Events) -> Any:
    return k.events.follow(call, list(args.kinds))


def kernel_policy(k: Kernel, call: Call, args: kernel.SetPolicy) -> kernel.Policy:
    if args.policy is not None or args.quantum is not None:
        name, quantum = args.policy or k.scheduler.policy_name, args.quantum or k.scheduler.quantum
        k.generations.apply(k.scheduler.set_policy(name, quantum, time.monotonic()))
        k.events.publish("policy", name, call.process.pid, quantum=quantum)
    return kernel.Policy(policy=k.scheduler.policy_name, quantum=k.scheduler.quantum)


def kernel_check(k: Kernel, call: Call, args: Empty) -> kernel.CheckReport:
    return kernel.CheckReport(problems=k.check())


async def kernel_stop(k: Kernel, call: Call, args: Empty) -> Done:
    await k.wind_up()
    return Done()
