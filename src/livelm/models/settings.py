"""Types of settings that several architectures have."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]

_HEAD_SCALE = """How large the output matrix begins, in units of 1 / sqrt(d_model). At 0 the first loss is ln V, and
n-gram rows learn little until the head has; at 1 they do at once. A tied table has a scale of its own."""
HeadScale = Annotated[float, Field(ge=0, description=_HEAD_SCALE)]
