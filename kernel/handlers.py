"""The handlers of system calls: which part of the kernel serves which call.

A handler takes a call and its arguments. It returns the body of the final reply; or, where that
comes later, a coroutine or a Wait.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from aios.syscalls import connection, kernel, llm, proc, sto
from aios.syscalls.base import Done, Empty
from aios.syscalls.errors import BadInput

from .entry.call import Call
from .entry.trap import Handler
from .llm.contexts import Context
from .process import check_principal
from .status import stats, status

if TYPE_CHECKING:
    from .boot import Kernel


def handlers(k: Kernel) -> dict[str, Handler]:
    """Return the handlers by call: a method of the manager whose call it is, or a function below,
    where several parts serve it, or the manager does not know it as a call."""
    return {
        **_process_calls(k), **_model_calls(k), **_data_calls(k), **_access_calls(k),
        **_kernel_calls(k),
    }  # fmt: skip


def _process_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "call.cancel": call_cancel,
        "proc.spawn": k.lifecycle.spawn,
        "proc.exit": k.lifecycle.exit,
        "proc.wait": k.waiters.wait,
        "proc.kill": k.lifecycle.kill,
        "proc.nice": partial(proc_nice, k),
        "proc.limits": k.limits.set_limits,
        "proc.ps": partial(proc_ps, k),
        "proc.whoami": proc_whoami,
        "proc.log": k.logs.read,
        "msg.send": k.mailroom.send,
        "msg.recv": k.mailroom.receive,
    }


def _model_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "llm.open": partial(llm_open, k),
        "llm.append": k.generations.append,
        "llm.generate": k.generations.generate,
        "llm.tokenize": k.prompts.tokenize,
        "llm.detokenize": k.prompts.detokenize,
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
        "sto.put": k.storage.put,
        "sto.batch": k.storage.batch,
        "sto.upload": k.storage.uploads.append,
        "sto.get": k.storage.get,
        "sto.list": k.storage.objects,
        "sto.history": k.storage.history,
        "sto.delete": k.storage.delete,
        "sto.rollback": k.storage.rollback,
        "sto.purge": k.storage.purge,
        "sto.share": k.storage.share,
        "sto.shares": k.storage.list_shares,
        "sto.owners": k.storage.owners,
        "sto.watch": k.storage.watch,
        "sto.verify": k.maintenance.verify,
        "sto.compact": k.maintenance.compact,
        "sto.backup": k.maintenance.backup,
        "sto.search": partial(sto_search, k),
        "sto.index": k.index.report,
        "sto.reindex": k.index.reindex,
    }


def _access_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "tool.list": k.tools.tell,
        "tool.call": k.tools.call,
        "tool.offer": k.tools.offer,
        "tool.serve": k.tools.serve,
        "tool.progress": k.tools.progress,
        "tool.done": k.tools.done,
        "acc.groups": k.grants.list_groups,
        "acc.set": k.grants.set_group,
        "acc.grant": k.gate.grant,
        "acc.revoke": k.grants.revoke,
        "acc.grants": k.grants.visible,
        "acc.check": k.gate.explain,
        "acc.ask": k.approvals.follow,
        "acc.answer": k.approvals.answer,
        "key.allow": k.gateway.allow,
        "key.remove": k.gateway.remove,
        "key.list": k.gateway.list_keys,
    }


def _kernel_calls(k: Kernel) -> dict[str, Handler]:
    return {
        "kernel.status": partial(status, k),
        "kernel.stats": partial(stats, k),
        "kernel.events": k.events.follow,
        "kernel.policy": partial(kernel_policy, k),
        "kernel.check": partial(kernel_check, k),
        "kernel.stop": partial(kernel_stop, k),
    }


def call_cancel(call: Call, args: connection.Cancel) -> connection.CancelReply:
    other = call.session.calls.get(args.call)
    if other is None or other is call:
        return connection.CancelReply(found=False)
    other.cancel()
    return connection.CancelReply(found=True)


def proc_nice(k: Kernel, call: Call, args: proc.SetNice) -> proc.NiceReply:
    process = call.process if args.pid is None else k.table.get(args.pid)
    process.nice = args.nice
    process.touch()
    k.scheduler.renice(process.contexts, args.nice)
    return proc.NiceReply(nice=args.nice)


def proc_ps(k: Kernel, call: Call, args: proc.Ps) -> list[proc.ProcessInfo]:
    now = time.monotonic()
    shown = (p for p in k.table.rows.values() if args.all or (p.alive and p.kind != "client"))
    return [process.info(now) for process in shown]


def proc_whoami(call: Call, args: Empty) -> proc.ProcessInfo:
    return call.process.info(time.monotonic())


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


def llm_close(k: Kernel, call: Call, args: llm.Close) -> Done:
    context = k.contexts.get(call.process, args.ctx)
    call.durable = context.name is not None
    k.contexts.close(context, forget=args.forget)
    return Done()


async def sto_search(k: Kernel, call: Call, args: sto.Search) -> sto.Hits:
    scopes = k.storage.scopes(call, args.owner, args.path)
    found = await k.index.search(call, args, k.gate.readable(call.process, scopes))
    k.storage.tell_read(call.process, ((hit.owner, hit.path, hit.version) for hit in found.hits))
    return found


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
