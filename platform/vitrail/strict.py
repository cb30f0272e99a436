"""Data that is checked: frozen pydantic models that refuse what they do not know."""

import hashlib
import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitrail.errors import UsageError

T = TypeVar("T", bound=BaseModel)
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """A frozen configuration that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """16 hexadecimal digits that change with any field."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def validated(cls: type[T], values: Any) -> T:
    """An instance of `cls`, or a `UsageError` with one line per field at fault."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or cls.__name__}: {e['msg']}" for e in error.errors()]
        raise UsageError("; ".join(lines)) from None
