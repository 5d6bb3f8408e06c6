"""Pydantic's models through the official client's ``parse`` and ``pydantic_function_tool``, on TGI's rules.

The stub compiles schemas as TGI's router does: it refuses what TGI refuses, and a recursion ends it.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pydantic
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, pydantic_function_tool
from pydantic import BaseModel, Field

from tests.serving import Serve, Served


class Node(BaseModel):
    """A model that contains itself."""

    v: int
    next: Node | None
    children: list[Node]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int | None


class Person(BaseModel):
    """A model that contains another one, twice."""

    home: Address
    work: Address = Field(description="where they work")
    favourite: Colour


class Loose(BaseModel):
    """Fields that TGI's compiler cannot express."""

    anything: Any
    took: datetime.timedelta
    page: pydantic.HttpUrl
    when: datetime.datetime
    id: UUID
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}\d{3}$")]
    short: Annotated[str, Field(max_length=9)]
    pair: tuple[int, str]
    kind: Literal["a", 1]
    by_name: dict[str, int]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pet(BaseModel):
    """A discriminated union."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


MODELS: list[type[BaseModel]] = [Node, Person, Loose, Pet]
# What the stub's strings cannot be by chance: TGI enforces neither, so the answers break pydantic's own reading.
UNENFORCED: dict[type[BaseModel], set[str]] = {Loose: {"took", "page"}}


@pytest.fixture
async def served(serve: Serve) -> Served:
    return await serve()


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    http = DefaultAsyncHttpxClient(trust_env=False)
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, http_client=http) as client:
        yield client


def holds(model: type[BaseModel], text: str) -> bool:
    """Return whether everything that TGI can enforce is kept."""
    try:
        model.model_validate_json(text)
    except pydantic.ValidationError as error:
        return {str(problem["loc"][0]) for problem in error.errors()} <= UNENFORCED.get(model, set())
    return True


@pytest.mark.parametrize("model", MODELS)
async def test_a_model_as_response_format(served: Served, client: AsyncOpenAI, model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    form: Any = {"type": "json_schema", "json_schema": {"name": model.__name__, "schema": schema}}
    answer = await client.chat.completions.create(
        model="ratchet", messages=[{"role": "user", "content": "Say one."}], response_format=form, n=1
    )
    assert holds(model, answer.choices[0].message.content or "")
    assert answer.model_extra is not None
    usable = answer.model_extra["best_of_n"]["unusable"]
    assert ({None} if model not in UNENFORCED else {"breaks_schema"}) == set(usable)


@pytest.mark.parametrize("model", [Node, Person, Pet])
async def test_parse_gives_the_model(client: AsyncOpenAI, model: type[BaseModel]) -> None:
    answer = await client.chat.completions.parse(
        model="ratchet", messages=[{"role": "user", "content": "Say one."}], response_format=model
    )
    assert isinstance(answer.choices[0].message.parsed, model)


@pytest.mark.parametrize("model", MODELS)
async def test_a_model_as_a_tool(served: Served, client: AsyncOpenAI, model: type[BaseModel]) -> None:
    answer = await client.chat.completions.create(
        model="ratchet",
        messages=[{"role": "user", "content": f"Call {model.__name__}."}],
        tools=[pydantic_function_tool(model)],
        tool_choice="required",
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert "function" == call.type
    assert model.__name__ == call.function.name
    assert holds(model, call.function.arguments)
    assert served.tgi.state.rejected == 0
