"""Render conversations, and find the spans that each role wrote."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers.utils import chat_template_utils

from ray_distill.config.labels import LanguageConfig
from ray_distill.tasks.inputs.chat import CHAT
from ray_distill.tasks.inputs.conversation import Conversation, Unfit, render, template_of

#: A message's end is found by rendering all before it, so that the work grows with the square of their number.
MOST_MESSAGES = 1000
#: Characters of a template's own text that a message shows.
_SHOWN = 40

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Stands for an answer; no template has it in its own text, and none opens a thought with its first letter.
_ANSWER = "§answer§"


@dataclass(frozen=True, kw_only=True)
class Template:
    """A tokenizer with a chat template, and the roles that are learnt."""

    tokenizer: Any
    roles: Collection[str]

    def render(self, conversation: Conversation) -> str:
        """Render the whole conversation as one text.

        Raises:
            Unfit: the template refuses it, or it is not a text.
        """
        return _encodable(self._render(conversation, len(conversation.messages)))

    def prompt(self, conversation: Conversation) -> str:
        """Render a conversation up to the header of an answer; errors as `render`."""
        return _encodable(self._render(conversation, len(conversation.messages), prompt=True))

    def after_answer(self) -> str:
        """Return the text that the template adds behind an answer; empty if it is unclear."""
        answered = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}))
        try:
            return self.render(answered).partition(_ANSWER)[2]
        except Unfit:
            return ""

    def spans(self, conversation: Conversation, text: str, until: int) -> list[tuple[int, int]]:
        """Return the spans ``[start, end)`` of ``text`` by the learnt roles, with end of turn.

        Args:
            conversation: what was rendered.
            text: what `render` gave for it.
            until: characters from here on are of no interest.

        Raises:
            Unfit: the template does not let it be found out.
        """
        source = template_of(self.tokenizer, conversation)
        if set(self.roles) == {"assistant"} and _GENERATION.search(source):
            return self._marked(conversation, source)
        return list(self._by_prefixes(conversation, text, until))

    def _marked(self, conversation: Conversation, source: str) -> list[tuple[int, int]]:
        """Return the assistant's spans as the template marks them."""
        _, found = chat_template_utils.render_jinja_template(
            conversations=[list(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **conversation.options},
        )
        spans = [(int(start), int(end)) for start, end in found[0]]
        answers = [message for message in conversation.messages if message["role"] == "assistant"]
        if all(_is_learnt(message) for message in answers):
            return spans
        if len(spans) != len(answers):
            raise Unfit("a message has weight 0, and the template marks other spans than one an answer")
        return [span for span, message in zip(spans, answers, strict=True) if _is_learnt(message)]

    def _by_prefixes(self, conversation: Conversation, text: str, until: int) -> Iterator[tuple[int, int]]:
        specials = tuple(str(token) for token in self.tokenizer.all_special_tokens)
        for index, message in enumerate(conversation.messages):
            if message["role"] not in self.roles or not _is_learnt(message):
                continue
            start = self._start(conversation, text, index)
            if start >= until:
                return
            if index >= MOST_MESSAGES:
                raise Unfit(
                    f"more than {MOST_MESSAGES} messages, whose roles the template does not mark: "
                    "use one with {% generation %}, or cut the conversation"
                )
            end = self._prefix(conversation, text, index + 1)
            yield start, start + _closed(text[start:end], specials)

    def _start(self, conversation: Conversation, text: str, index: int) -> int:
        """Return the start of a message; an assistant's begins after its header."""
        if conversation.messages[index]["role"] != "assistant":
            return self._prefix(conversation, text, index) if index else 0
        if not index:
            return self._start_of_first(conversation, text)
        prompt = self._render(conversation, index, prompt=True)
        return len(prompt) if text.startswith(prompt) else self._after_header(conversation, text, index, prompt)

    def _after_header(self, conversation: Conversation, text: str, index: int, prompt: str) -> int:
        """Return the start of an answer that the template writes otherwise than it prompts for one.

        The header of a reasoning model also opens a thought, which a stored answer may not have: the longest common
        beginning of header and rendering is its header.
        """
        before = self._prefix(conversation, text, index)
        start = min(_common(prompt, text), _common(prompt, self._answered(conversation, index)))
        if start <= before:
            raise Unfit(
                f"the chat template prompts for an answer with {prompt[before:][:_SHOWN]!r} and writes none so: use a "
                "template with {% generation %}, or mend its add_generation_prompt"
            )
        return start

    def _start_of_first(self, conversation: Conversation, text: str) -> int:
        """Return the start of a conversation's first message, an answer.

        No template renders no messages. The header is what a prompt for the second message would add, or else all
        before a made-up answer.
        """
        alone = self._render(conversation, 1)
        header = self._render(conversation, 1, prompt=True)[len(alone) :]
        found = text.find(header)
        if found >= 0:
            return found + len(header)
        return _common(text, self._answered(conversation, 0))

    def _answered(self, conversation: Conversation, index: int) -> str:
        """Render the messages before an answer, and a made-up one."""
        made_up = {"role": "assistant", "content": _ANSWER}
        return self._render(replace(conversation, messages=(*conversation.messages[:index], made_up)), index + 1)

    def _prefix(self, conversation: Conversation, text: str, messages: int) -> int:
        part = text if messages == len(conversation.messages) else self._render(conversation, messages)
        if not text.startswith(part):
            raise Unfit(
                f"the chat template writes the first {messages} messages otherwise once others follow"
                f"{self._rewriting()}, so the spans of the roles are unknown: "
                f"{_way_out(conversation, messages)}"
            )
        return len(part)

    def _rewriting(self) -> str:
        """Show on a made-up conversation how the template rewrites an answer that others follow."""
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": f"<think>b</think>{_ANSWER}"}
        made_up = Conversation(messages=(user, answer, user, answer))
        try:
            alone, whole = self._render(made_up, 2), self._render(made_up, 4)
        except Unfit:
            return ""
        at = _common(alone, whole)
        shown = [part[max(0, at - _SHOWN // 2) :].partition(_ANSWER)[0][:_SHOWN] for part in (alone, whole)]
        return "" if at == len(alone) else f" (as a last answer {shown[0]!r}, before others {shown[1]!r})"

    def _render(self, conversation: Conversation, messages: int, *, prompt: bool = False) -> str:
        try:
            return render(
                self.tokenizer, replace(conversation, messages=conversation.messages[:messages]), prompt=prompt
            )
        except Exception as error:  # a template is a program: it raises what it likes
            which = "it" if messages == len(conversation.messages) else f"its first {messages} messages alone"
            raise Unfit(f"the chat template cannot render {which}: {type(error).__name__}: {error}") from error


def is_chat(settings: LanguageConfig) -> bool:
    """Return whether a row is a conversation; it is a plain text otherwise."""
    return settings.format == CHAT


def without_answer(conversation: Conversation) -> Conversation:
    """Return the conversation up to the assistant's last turn, which is to be written again.

    Raises:
        Unfit: there is nothing before it.
    """
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise Unfit("no prompt: nobody but the assistant speaks")
    return replace(conversation, messages=tuple(messages))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit(f"not UTF-8: half a character (\\u{ord(text[error.start]):04x}) in a message") from error
    return text


def _is_learnt(message: dict[str, Any]) -> bool:
    """Return whether a message is learnt: OpenAI's ``weight`` of 0 excludes it."""
    return bool(message.get("weight", 1) != 0)


def _common(one: str, other: str) -> int:
    """Return the length of the longest common beginning."""
    return len(os.path.commonprefix([one, other]))


def _way_out(conversation: Conversation, messages: int) -> str:
    here, following = (conversation.messages[at]["role"] for at in (messages - 1, messages))
    if here == following:
        return f"join consecutive messages of {here} in the source, as the template does"
    return "use a template with {% generation %}, or one answer a row"


def _closed(text: str, specials: tuple[str, ...]) -> int:
    """Return the length of a message up to the token that ends its turn."""
    bare = text.rstrip()
    return len(bare) if bare.endswith(specials) else len(text)
