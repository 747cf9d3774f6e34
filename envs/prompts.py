"""Self-iteration prompts (paper appendix B): improve on a response, or diverge from it."""

from __future__ import annotations

IMPROVE = (
    "Your previous response may be wrong or incomplete. Check it carefully against the original request, "
    "then give an improved response to that request. If it is already correct, give it again. "
    "Respond in the format that the original request asks for, without referring to your previous response."
)

DIVERGE = (
    "Give a new response to the original request that improves on your previous response and takes a "
    "substantially different approach. "
    "Respond in the format that the original request asks for, without referring to your previous response."
)

FEEDBACK = "Your previous response got this feedback:\n{feedback}\n\n"


def self_iteration_prompt(kind: str, feedback: str | None = None) -> str:
    """The user message that asks for a self-iteration step.

    Args:
        kind: ``improve`` or ``diverge``.
        feedback: The environment's answer to the response, shown if there is one.

    Raises:
        ValueError: If the kind is neither.
    """
    if kind not in ("improve", "diverge"):
        raise ValueError(f"kind is {kind!r}: a self-iteration step is 'improve' or 'diverge'")
    prompt = IMPROVE if kind == "improve" else DIVERGE
    return (FEEDBACK.format(feedback=feedback) if feedback else "") + prompt
