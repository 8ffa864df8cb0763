"""What an agent has to know of an engine beyond its process, also of one that a former agent started."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from schemas.assignment import AssignedInstance

EMBEDS = "embedding"
_ANSWERS_NO_TOKENS = frozenset({"reranker", "image", "speech_to_text", "text_to_speech"})


@dataclass(frozen=True, slots=True)
class About:
    model: str = ""
    """Its name, as requests say it."""
    backend: str = ""
    accelerator: str | None = None
    start_timeout_seconds: float = 900.0
    categories: tuple[str, ...] = ()

    @classmethod
    def of(cls, assigned: AssignedInstance) -> Self:
        launch = assigned.launch
        return cls(
            launch.model_name,
            launch.backend,
            assigned.accelerator,
            launch.start_timeout_seconds,
            tuple(launch.categories),
        )

    @classmethod
    def told_by(cls, details: Mapping[str, object]) -> Self:
        """As `as_details` wrote it; an engine of an older agent has less."""
        known: dict[str, Any] = {each.name: details[each.name] for each in fields(cls) if each.name in details}
        known["categories"] = tuple(known.get("categories", ()))
        return cls(**known)

    def as_details(self) -> Mapping[str, object]:
        return {**asdict(self), "categories": list(self.categories)}

    @property
    def embeds(self) -> bool:
        return EMBEDS in self.categories

    @property
    def answers_tokens(self) -> bool:
        """A request for one token, or for the embedding of one, makes sense."""
        return not _ANSWERS_NO_TOKENS & set(self.categories)
