"""What every table of the settings is: frozen, in kebab case, and a key it does not know is an error."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Table"]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class Table(BaseModel):
    """A table; see the module."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=_kebab,
        populate_by_name=True,
        hide_input_in_errors=True,  # a value that does not belong here may be a secret
    )
