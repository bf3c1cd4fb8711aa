"""An agent and a toolbox that put what no terminal should see wherever an agent can put a text."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from aios.agents import Agent, Aios, AiosError
from aios.agents.tools import Running, tool

# A colour, a title, a link, a cleared screen, a cursor elsewhere; the same in C1; directions, no
# width, private, separators; and markup.
EVIL = (
    "\x1b[38;5;199m\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\\x1b[2J\x1b[?1049h\x1b[7;7H\x9b2J\x9d0;owned\x9c"
    "\x7f\b\u202e\u2066\u200f\u200b\u200d\ufeff\xad\ue000\u2028\u3164[link=http://evil]x[/link]"
)
RAW = EVIL.encode() + b"\xff\xfe\n"


def attempts(aios: Aios) -> list[Callable[[], Any]]:
    return [
        lambda: aios.sto_put("notes/\u202e\u200b\ue000\u3164", EVIL),
        lambda: aios.sto_put(f"notes/{EVIL}", EVIL),
        lambda: aios.sto_put("notes/plain", EVIL, tags=[EVIL[:60]], media=EVIL[:100]),
        lambda: aios.sto_put("notes/plain", f"{EVIL}\nsecond\n", tags=[EVIL[:60]]),
        lambda: aios.mem_put({EVIL[:90]: EVIL, "plain": [EVIL, {EVIL: EVIL}]}),
        lambda: aios.mem_put({"bytes": RAW}),
        lambda: aios.grant("/other", "proc.control", EVIL, args={EVIL: EVIL}),
        lambda: aios.open(EVIL, name="diary\u3164").checkpoint("mark\u115f"),
        lambda: aios.send("test", EVIL),
        lambda: aios.call_tool("evil.say", {"text": EVIL}).result(),
        lambda: aios.call_tool("evil.fail", {EVIL: EVIL}).result(),
        lambda: aios.call_tool(EVIL, {EVIL: EVIL}).result(),
        lambda: aios.sto_share("notes", f"/{EVIL}"),
        lambda: aios.check_access("tool", EVIL),
        lambda: aios.generate(EVIL, max_tokens=2).result(),
        lambda: aios.spawn(EVIL, EVIL),
        lambda: aios.spawn("/bin/true", args=[EVIL], name="child\u3164"),
        lambda: aios.start(EVIL, **{EVIL: EVIL}).wait(),
    ]


class Hostile(Agent):
    """Its task says what it does besides."""

    name = "hostile"

    def run(self, task: Any) -> Any:
        sys.stdout.buffer.write(RAW)
        sys.stdout.buffer.flush()
        for attempt in attempts(self.aios):
            with contextlib.suppress(AiosError):
                attempt()
        if task == "ask":
            self.aios.mem_put({EVIL[:90]: EVIL})
        if task == "fail":
            raise RuntimeError(EVIL)
        while task == "stay":
            mail = self.aios.recv()
            self.aios.send(mail.sender, {EVIL: [mail.body, EVIL]})
        return {"said": EVIL, EVIL: [EVIL]}


def _say(text: str, job: Running) -> str:
    job.progress(0.5, 1, EVIL)
    return text + EVIL


def _fail(text: str = "") -> str:
    raise RuntimeError(text + EVIL)


_say.__doc__ = _fail.__doc__ = f"Say {EVIL}\n\n{EVIL}"
say = tool(name="evil.say", effect=True)(_say)
fail = tool(name="evil.fail")(_fail)
