"""OpenAI's Responses API, which its newest models need for tools together with reasoning.

Layer: providers; the wire format is in `responses_wire`, `responses_answer` and `responses_stream`. All else
is as for chat completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from palaver.providers.openai import OpenAI
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response
from palaver.providers.responses_answer import from_wire
from palaver.providers.responses_stream import ResponsesAssembler
from palaver.providers.responses_wire import MIN_OUTPUT_TOKENS, to_wire
from palaver.providers.stream import Assembler
from palaver.providers.worst_case import CountedInput, WorstCase


class OpenAIResponses(OpenAI):
    """A model behind the Responses API, at OpenAI or at another server that speaks it.

    Takes what `OpenAI` takes, but for `profile` and `server`: here is no quirk to choose. Nothing is stored
    at the server. `reasoning_summary` asks for what the model thought, in words: "auto", "concise" or
    "detailed", where the account may have it; None does not ask. An answer is never bound to fewer than 16
    tokens, which the API refuses.
    """

    def __init__(
        self,
        model: str,
        *,
        reasoning_summary: Literal["auto", "concise", "detailed"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self._reasoning_summary = reasoning_summary
        # Its items are no parts of chat completions, nor the other way round.
        self._origin = f"{self.name}/responses"

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        """By schema, beside tools too."""
        return "schema"

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most that one try of `request` can come to; see `OpenAI.worst_case`."""
        if request.max_tokens is not None and request.max_tokens < MIN_OUTPUT_TOKENS:
            request = request.model_copy(update={"max_tokens": MIN_OUTPUT_TOKENS})
        return super().worst_case(request, counted)

    _path = "responses"

    def _assembler(self) -> Assembler:
        return ResponsesAssembler(self.price)

    def _asks_for_parts(self) -> dict[str, Any]:
        return {"stream": True}

    def _from_wire(self, answer: Mapping[str, Any], request: Request) -> Response:
        return from_wire(
            answer,
            request=request,
            peer=self._endpoint.peer,
            origin=self._origin,
            price=self.price,
            now=self._clock.now(),
        )

    def _to_wire(self, request: Request) -> dict[str, Any]:
        return to_wire(
            request,
            model=self.model,
            origin=self._origin,
            max_tokens=self.max_tokens,
            reasoning_effort=self._reasoning_effort,
            reasoning_summary=self._reasoning_summary,
            takes_names=self._profile.forced_choice == "named",
        )
