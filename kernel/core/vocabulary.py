"""The vocabulary of a model on llama.cpp: tokens to text and back, and the chat template."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import llama_cpp as ll

from aios.syscalls.errors import BadInput

from .chat import ControlTokens, PromptPart
from .gguf import tokenize
from .grammar import Grammars
from .template import NO_TEMPLATE_HINT, Template

CONTROL_TOKEN = re.compile(r"<[|\uff5c].*[|\uff5c]>|<(start|end)_of_turn>")  # as it is written


class LlamaVocabulary:
    """The tokens of a loaded `model`. It touches no llama.cpp context, so another thread may use
    it while the engine computes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.vocab = ll.llama_model_get_vocab(model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        self.pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, start: bool) -> list[int]:
        """Return the token ids of `text`, special tokens parsed. At the `start` of a context they
        begin with BOS, if the model wants one and the text does not have it."""
        bos = self._text_of(ll.llama_vocab_bos)
        start = start and not (bos and text.startswith(bos))
        return tokenize(self.vocab, text, start=start, special=True)

    def tokenize_parts(self, parts: Sequence[PromptPart], *, start: bool) -> list[int]:
        """Return the token ids of a text cut where no token may span; parts may be tokens."""
        tokens: list[int] = []
        line = self.tokenize("\n", start=False)
        for at, part in enumerate(parts):
            if isinstance(part, list):
                tokens += part
            elif at == 0:
                tokens += self.tokenize(part, start=start)
            else:  # behind a line's end some models put no blank before a word
                found = self.tokenize("\n" + part, start=False)
                same = found[: len(line)] == line
                tokens += found[len(line) :] if same else self.tokenize(part, start=False)
        return tokens

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token; control tokens have none.

        Raises:
            BadInput: there is no such token (llama.cpp would end the process).
        """
        if token >= self.n_vocab:
            raise BadInput(f"token {token} is out of the model's vocabulary of {self.n_vocab}")
        known = self.pieces.get(token)
        if known is None:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = ll.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
                if count >= 0:
                    break
                size = -count
            known = self.pieces[token] = buffer.raw[:count]
        return known

    def is_end(self, token: int) -> bool:
        return bool(ll.llama_vocab_is_eog(self.vocab, token))

    def render(self, messages: list[dict[str, str]], *, reply: bool) -> str:
        """Render `messages` by the model's chat template; `reply` opens an answer.

        Raises:
            BadInput: the template refuses the messages.
        """
        (text,) = self.template.render([(messages, reply)])
        if isinstance(text, BadInput):
            raise text
        return text

    @cached_property
    def template(self) -> Template:
        """The chat template that the model's file carries.

        Raises:
            BadInput: the file carries none.
            ModelError: the template cannot be used.
        """
        raw = ll.llama_model_chat_template(self.model, None)
        if not raw:
            raise BadInput("this model carries no chat template", NO_TEMPLATE_HINT)
        bos, eos = self._text_of(ll.llama_vocab_bos), self._text_of(ll.llama_vocab_eos)
        return Template(raw.decode(errors="replace"), bos, eos)

    def check_template(self) -> None:
        """Raise ModelError for a chat template that cannot be used; a model may have none."""
        with suppress(BadInput):
            _ = self.template

    def close_template(self) -> None:
        if "template" in self.__dict__:
            self.template.close()

    @cached_property
    def controls(self) -> ControlTokens:
        """The control tokens as they are written: text of users must not become one."""
        special = ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN
        texts = []
        for token in range(self.n_vocab):
            kind = ll.llama_vocab_get_attr(self.vocab, token)
            if kind & (special | ll.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = ll.llama_vocab_get_text(self.vocab, token).decode(errors="replace")
                if kind & special or self.is_end(token) or CONTROL_TOKEN.fullmatch(text):
                    texts.append(text)
        return ControlTokens(texts)

    @cached_property
    def grammars(self) -> Grammars:  # made on first use: it takes 0.3 s, and few need it
        tokens = range(self.n_vocab)
        ends = [token for token in tokens if self.is_end(token)]
        pieces = [self.piece(token) for token in tokens]
        return Grammars(pieces, ends, lambda text: self.tokenize(text.decode(), start=False))

    def _text_of(self, which: Any) -> str:
        """Return the text of BOS or EOS, by llama.cpp's function for it; empty if there is none."""
        token = which(self.vocab)
        if token < 0:
            return ""
        text: bytes = ll.llama_vocab_get_text(self.vocab, token)
        return text.decode(errors="replace")
