"""The gate: the network also says, for each class, whether the case holds it at all."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from competition.config.competition import Section, Share


class Gate(Section):
    """A second, small head that classifies; see `competition.model.gate`."""

    weight: Annotated[float, Field(ge=0)] = 0.1  # of its binary cross-entropy beside the loss
    pooling: Literal["avg", "max"] = "avg"  # of the deepest feature map: what all of it says, or its strongest place
    dropout: Annotated[Share, Field(lt=1)] = 0.0  # between pooling and the linear layer
