"""Types of settings with a range, which pydantic enforces when a configuration is read."""

from typing import Annotated

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


def require_ordered(name: str, pair: tuple[float, float]) -> None:
    """Reject a range whose ends are in the wrong order.

    Raises:
        ValueError: The first value is larger than the second; names the setting.
    """
    if pair[0] > pair[1]:
        raise ValueError(f"{name} {pair}: the first value must not be larger than the second")
