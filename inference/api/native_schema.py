"""Request bodies of the appliance's own dialect."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from inference.api.fields import Name, Strict
from inference.bench import MAX_CONCURRENCY, MAX_PROMPT_TOKENS, MAX_RUNS, MAX_TOKENS, Course
from inference.errors import InvalidRequestError


class BenchBody(Strict):
    """The body of ``POST /jetllm/v1/bench``."""

    model: Name
    variant: Name | None = None
    prompt_tokens: Annotated[int, Field(ge=1, le=MAX_PROMPT_TOKENS)] = Course.prompt_tokens
    max_tokens: Annotated[int, Field(ge=2, le=MAX_TOKENS)] = Course.max_tokens
    concurrency: Annotated[int, Field(ge=1, le=MAX_CONCURRENCY)] = Course.concurrency
    runs: Annotated[int, Field(ge=1, le=MAX_RUNS)] = Course.runs
    stream: bool | None = None

    def to_course(self, slots: int) -> Course:
        """Return what is to be measured.

        Raises:
            InvalidRequestError: a worker computes fewer requests at once.
        """
        if self.concurrency > slots:
            raise InvalidRequestError(
                f"concurrency: expected at most {slots}, the setting slots, got {self.concurrency}",
                param="concurrency",
            )
        values = self.model_dump(exclude={"stream"})
        return Course(**values)
