"""Whether the tokens that a job asks for fit in the model's context."""

from __future__ import annotations

from ..config import BadInput


def check_prompt_context(
    option: str, max_prompt_tokens: int, max_new_tokens: int, context: int, encoder_decoder: bool = False
) -> None:
    """Raises BadInput if the longest prompt of the section ``option`` and the longest answer exceed ``context`` tokens.

    An ``encoder_decoder`` has one context for the prompt and another one for the answer.
    """
    sizes = (max_prompt_tokens, max_new_tokens)
    if (max(sizes) if encoder_decoder else sum(sizes)) > context:
        raise BadInput(
            f"{option}.max_prompt_tokens {max_prompt_tokens} {'or' if encoder_decoder else '+'} "
            f"rollout.max_new_tokens {max_new_tokens} exceed the model's context of {context} tokens; lower one of them"
        )


def check_row_context(max_length: int, context: int) -> None:
    """Raises BadInput if the longest row of a supervised job exceeds ``context`` tokens."""
    if max_length > context:
        raise BadInput(f"max_length {max_length} exceeds the model's context of {context} tokens; lower it")
