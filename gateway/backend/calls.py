"""Chat completions of one replica, whole or streamed, with errors in the gateway's terms."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from gateway.backend.adapters import Adapters
from gateway.backend.failures import CALL_ERRORS, json_object, translate
from gateway.backend.http import StatusError
from gateway.backend.kind import Kind
from gateway.backend.reading import StreamReader, read_answer
from gateway.backend.replicas import Replica
from gateway.errors import BackendError, BackendFailed, UnsupportedField
from gateway.metering import tokens_at_most
from gateway.types import Answer, Delta, JsonObject, Prompt


@dataclass(eq=False)
class Calls:
    """Draws answers from replicas."""

    kind: Kind
    adapters: Adapters

    async def complete(self, replica: Replica, prompt: Prompt, seed: int) -> Answer:
        """Draw one whole answer.

        Raises:
            BackendError: There is no answer.
            InvalidRequest: The messages cannot be sent.
        """
        arguments, flavour = await self._arguments(replica, prompt, seed), self.kind.flavour
        async with self._checking_adapter(replica, prompt):
            with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
                try:
                    completion = await replica.hub.completion(arguments)
                    body = flavour.correct(completion.body, completion.headers, prompt)
                except CALL_ERRORS as error:
                    refusal = json_object(error.content) if isinstance(error, StatusError) else {}
                    body = flavour.answer_in_refusal(refusal, prompt)
                    if body is None:
                        raise translate(error, flavour) from error
                try:
                    answer = read_answer(body, flavour, prompt)
                except BackendError:
                    if isinstance(body, dict) and body.get("choices"):
                        call.tokens = tokens_at_most(body)
                    raise
                call.count(answer.prompt_tokens, answer.completion_tokens)
                return answer

    async def stream(self, replica: Replica, prompt: Prompt, seed: int) -> AsyncGenerator[Delta, None]:
        """Draw one answer piece by piece.

        Raises:
            BackendError: There is no answer, or no more of it.
            InvalidRequest: The messages cannot be sent.
        """
        arguments, flavour = await self._arguments(replica, prompt, seed), self.kind.flavour
        reader = StreamReader(flavour, prompt)
        async with self._checking_adapter(replica, prompt):
            with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
                call.count(None, 0)
                try:
                    async with aclosing(replica.hub.chunks(arguments, flavour.stream_options)) as chunks:
                        async for chunk in chunks:
                            deltas = list(reader.read(chunk))
                            call.count(*reader.drawn())
                            for delta in deltas:
                                yield delta
                            if reader.overrun:
                                break
                except BackendError:
                    if not reader.finished:
                        raise
                except CALL_ERRORS as error:
                    if not reader.finished:
                        raise translate(error, flavour) from error
            yield reader.last()

    @asynccontextmanager
    async def _checking_adapter(self, replica: Replica, prompt: Prompt) -> AsyncIterator[None]:
        """Ask after an error whether the replica has lost the adapter; ``AdapterMissing`` then takes its place."""
        try:
            yield
        except BackendFailed:
            await self.adapters.check_after_error(replica, prompt.adapter)
            raise

    async def _arguments(self, replica: Replica, prompt: Prompt, seed: int) -> JsonObject:
        """Return the request; raise ``UnsupportedField`` if the replica's template would leave out the tools."""
        flavour = self.kind.flavour
        if prompt.sampling.tools and flavour.properties_path is not None and not replica.shows_tools:
            replica.shows_tools = await replica.server.shows_tools(flavour)
            if not replica.shows_tools:
                raise UnsupportedField("tools: the chat template of this backend's model has none", param="tools")
        return flavour.arguments(prompt, seed, await self.adapters.lists(replica, prompt.adapter))
