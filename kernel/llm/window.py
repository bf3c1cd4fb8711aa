"""Enter input into contexts. Where a window is full, something leaves, by the context's `on_full`.

    error       nothing leaves: the call fails, and the context is as it was
    slide       the oldest turns go; what comes first (system text, tools) and the newest stay
    summarize   they go, and the model sums up all that has gone, in front of the system text
    recall      they go, and come back in front of a message that is about them

A context that loses something gets a new history: what stays is rendered and prefilled again. So
its answers are again a function of its history, which is journaled. Text that is no conversation,
or not only, is cut by tokens: the first part of it stays, and the newest.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable

from aios.syscalls.errors import BadInput, ContextFull
from aios.syscalls.llm import Append, Decoding, Generate, Moved, PastMessage

from ..core.protocol import PREFILLED, DetokenizeRequest
from ..entry.call import Call
from ..process import Process
from .context_state import ContextState, Turn
from .contexts import Context, ContextManager
from .prompt import PromptInput, Prompts

STAY_SHARE = 0.5  # of the window: stays at most, once something has to go
ANSWER_SHARE = 0.25  # of the window: is kept free for an answer at most
SUMMARY_SHARE = 0.125  # of the window: a summary takes at most
MAX_RECALLED = 3  # turns for one message
RECALLED_CHARS = 1  # of all turns that are recalled for one message, for each token of the window
SLACK_TOKENS = 8  # that a message may grow by when the turns in front of it change
SUMMARIZE_PROMPT = (
    "You condense conversations. Write down in short plain sentences every fact, name, number, "
    "decision and open question of the conversation that follows. Add nothing."
)


class Windows:
    """Enters input into contexts, and makes room in them.

    `generate(call, turns, decoding)` has the model answer for the kernel itself.
    """

    def __init__(
        self,
        contexts: ContextManager,
        prompts: Prompts,
        generate: Callable[[Call, list[Turn], Decoding], Awaitable[str]],
    ) -> None:
        self.contexts, self.prompts, self.generate = contexts, prompts, generate

    async def enter(
        self, call: Call, context: Context, args: Append | Generate
    ) -> tuple[int, Moved | None]:
        """Append the input in `args`; where the window is full, make room first if the context
        allows it. Return how many tokens entered, and what left and came back for them.

        Raises:
            BadInput, ContextFull, LimitReached.
        """
        given = [part for part in (args.messages, args.text, args.tokens) if part is not None]
        if len(given) > 1:
            raise BadInput("messages, text and tokens exclude each other", "send one of them")
        turns = [Turn(message.role, message.content) for message in args.messages or []]
        if turns or not given:
            turns = context.prelude + turns
        reply = isinstance(args, Generate)
        answer_is_open = not context.turns or context.turns[-1].generated
        if not given and not turns and (answer_is_open or not reply):
            return 0, None
        moved = self._recall(context, turns)
        new = PromptInput(turns, args.text, args.tokens, reply)

        tokens = await self.prompts.encode(call.process, context, new)
        room = len(tokens) + self._room(args)
        fits = context.used + room <= self.contexts.window
        if not fits and context.on_full != "error" and context.used:
            left = await self._make_room(call, context, room + SLACK_TOKENS)
            left.recalled = moved.recalled if moved is not None else []
            moved = left
            tokens = await self.prompts.encode(call.process, context, new)
        self._append(call.process, context, new, tokens)
        return len(tokens), moved

    def _room(self, args: Append | Generate) -> int:
        """Return how many tokens to keep free for the answer."""
        wanted = args.max_tokens if isinstance(args, Generate) else 0
        return min(wanted, int(self.contexts.window * ANSWER_SHARE))

    def _append(
        self, process: Process, context: Context, new: PromptInput, tokens: list[int]
    ) -> None:
        process.check_tokens(len(tokens))
        self.contexts.append(context, tokens)
        process.spend(len(tokens))
        if new.turns:
            context.prelude = []
            context.turns += new.turns
        else:
            context.mixed = True

    # --- what goes ------------------------------------------------------------------------------

    async def _make_room(self, call: Call, context: Context, room: int) -> Moved:
        """Make room for `room` tokens; nothing changes before it is known that they fit."""
        if context.mixed or not context.turns:
            return await self._cut_text(call.process, context, room)
        stay = list(context.turns)
        head = 0
        for role in ("system", "tools"):
            head += [turn.role for turn in stay[head : head + 1]] == [role]
        limit = min(self.contexts.window * STAY_SHARE, self.contexts.window - room)
        scale = context.used / sum(len(turn.note + turn.text) + 1 for turn in stay)
        while len(stay) > head and sum(len(t.note + t.text) + 1 for t in stay) * scale > limit:
            del stay[head]
        while len(stay) > head and stay[head].role != "user":  # an answer without its question
            del stay[head]
        gone = context.turns[head : len(context.turns) - len(stay) + head]
        summary = None
        if context.on_full == "summarize" and gone:
            decoding = Decoding(max_tokens=max(16, int(self.contexts.window * SUMMARY_SHARE)))
            summary = await self.generate(call, _to_sum_up(context.summary, gone), decoding)
            note = f"Summary of the conversation so far: {summary}\n\n"
            old = stay.pop(0).text if head and stay[0].role == "system" else ""
            stay.insert(0, Turn("system", old, note))
        tokens: list[int] = []
        if stay:
            new = PromptInput(stay, None, None, reply=False)
            tokens = await self.prompts.encode(call.process, ContextState(), new)
        return self._move(context, room, stay, gone, tokens, summary)

    def _move(
        self, context: Context, room: int, stay: list[Turn], gone: list[Turn], tokens: list[int],
        summary: str | None,
    ) -> Moved:  # fmt: skip
        """Make the turns that stay the new history. Raise ContextFull where they are too many."""
        if len(tokens) + room > self.contexts.window:
            raise ContextFull(
                f"{room} tokens do not fit behind the {len(tokens)} that stay: the window "
                f"holds {self.contexts.window}",
                "shorten it, or start with a larger --ctx",
            )
        moved = Moved(
            tokens=context.used - len(tokens),
            dropped=[PastMessage(role=turn.role, content=turn.text) for turn in gone],
            summary=summary,
            recalled=[],
        )
        context.turns = [Turn(turn.role, turn.text, turn.note, tokens=turn.tokens) for turn in stay]
        context.summary = summary
        if context.on_full == "recall":
            context.drop(gone)
        self._replace(context, tokens)
        return moved

    async def _cut_text(self, process: Process, context: Context, room: int) -> Moved:
        """Cut out tokens between the beginning, an eighth of the window, and the newest."""
        window, old = self.contexts.window, context.tokens
        first = min(window // 8, len(old))
        newest = int(min(window * STAY_SHARE, window - room)) - first
        if newest < 0:
            raise ContextFull(f"{room} tokens do not fit: the window holds {window}")
        cut = slice(first, max(first, len(old) - newest))

        text = (await self.prompts.question(process, DetokenizeRequest, old[cut])).text
        self._replace(context, old[: cut.start] + old[cut.stop :])
        gone = [PastMessage(role="text", content=text)]
        return Moved(tokens=cut.stop - cut.start, dropped=gone, summary=None, recalled=[])

    def _replace(self, context: Context, tokens: list[int]) -> None:
        context.history = [(PREFILLED, tokens)] if tokens else []
        context.used, context.sealed = len(tokens), not tokens
        self.contexts.touch(context)

    # --- what comes back ------------------------------------------------------------------------

    def _recall(self, context: Context, turns: list[Turn]) -> Moved | None:
        """Put dropped turns that the newest of `turns` is about in front of it."""
        if not context.dropped or not turns or context.on_full != "recall":
            return None
        left = self.contexts.window * RECALLED_CHARS
        recalled = []
        for turn in relevant(turns[-1].text, context.dropped)[:MAX_RECALLED]:
            if left > 0:
                recalled.append(PastMessage(role=turn.role, content=turn.text[:left]))
            left -= len(turn.text)
        if not recalled:
            return None
        said = "".join(f"{message.role}: {message.content}\n" for message in recalled)
        turns[-1].note = f"Earlier in this conversation:\n{said}\n"
        return Moved(tokens=0, dropped=[], summary=None, recalled=recalled)


def relevant(text: str, turns: list[Turn]) -> list[Turn]:
    """List the turns that share words with `text`, the best first, by BM25 without its length
    norm."""
    bags = [Counter(words(turn.text)) for turn in turns]
    held = Counter(word for bag in bags for word in bag)
    weights = {
        word: math.log(1 + (len(turns) - held[word] + 0.5) / (held[word] + 0.5))
        for word in set(words(text)) & held.keys()
    }
    scores = [sum(w * bag[word] / (bag[word] + 1.2) for word, w in weights.items()) for bag in bags]
    ranked = sorted(range(len(turns)), key=lambda i: (-scores[i], -i))
    return [turns[i] for i in ranked if scores[i] > 0]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _to_sum_up(summary: str | None, gone: list[Turn]) -> list[Turn]:
    before = [] if summary is None else [f"Before that: {summary}"]
    said = "\n".join([*before, *(f"{turn.role}: {turn.text}" for turn in gone)])
    return [Turn("system", SUMMARIZE_PROMPT), Turn("user", said)]
