"""Kinds of numbers in a recipe, each within the bounds that its use can bear."""

from typing import Annotated

from pydantic import Field

AtLeastTwo = Annotated[int, Field(ge=2, le=2**40, strict=True)]
PositiveInt = Annotated[int, Field(gt=0, le=2**40, strict=True)]
Size = Annotated[int, Field(gt=0, le=2**17, strict=True)]
"""Of a tensor, which is made as large as it says."""
Depth = Annotated[int, Field(gt=0, le=1000, strict=True)]
"""Of layers or steps, of which each takes time and memory."""
TokenId = Annotated[int, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
