"""Pipelines as classes; each is a pipeline document of the cluster."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Dict, List, Optional, Sequence

from .phase import checked_name, phase_of

#: What pipelines of CarbonTube have to say where jobs are kept.
_NOT_NEEDED = ("backend", "initialize")


class Pipeline:
    """Phases in their order: classes or functions, job types, or tables as in a pipeline document.

    Whatever else a document may say (``replicas``, ``preset``, ``retention``...) goes into
    ``options``.
    """

    name: ClassVar[Optional[str]] = None
    phases: ClassVar[Sequence[Any]] = ()
    options: ClassVar[Dict[str, Any]] = {}

    @classmethod
    def document(cls) -> Dict[str, Any]:
        """Its document, as ``carbonmesh pipeline apply`` takes it.

        Raises ``TypeError`` if it has no name or no phases.
        """
        if cls.name is None:
            raise TypeError(f"class {cls.__name__} has no name: add, for example, name = 'invoices'")
        try:
            checked_name(cls.name)
        except TypeError as error:
            raise TypeError(f"class {cls.__name__}: name {error}") from None
        if not cls.phases:
            raise TypeError(f"pipeline {cls.name!r} has no phases: add phases = [FirstPhase]")
        for name in _NOT_NEEDED:
            if getattr(cls, name, None) is not None:
                logging.getLogger("carbonmesh").warning(
                    "pipeline %r: `%s` is not needed any more: nodes keep jobs themselves",
                    cls.name,
                    name,
                )
        phases = [cls._phase(one) for one in cls.phases]
        return {**cls._plain(cls.options), "name": cls.name, "phases": phases}

    @classmethod
    def _phase(cls, one: Any) -> Any:
        plain = cls._plain(one)
        if isinstance(plain, (str, dict)):
            return plain
        raise TypeError(
            f"pipeline {cls.name!r}: {one!r} is no phase: give a class with a job_type, a job type, "
            "or a table"
        )

    @classmethod
    def _plain(cls, value: Any) -> Any:
        """The value with the job type in the place of each phase in it."""
        if isinstance(value, dict):
            return {key: cls._plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [cls._plain(one) for one in value]
        found = phase_of(value)
        if found is None:
            return value
        if found.job_type is None:
            raise TypeError(f"pipeline {cls.name!r}: class {found.__name__} has no job_type")
        return found.job_type


def pipelines_in(namespace: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The documents of the pipelines that a file defines or imports."""
    found = [
        value
        for value in namespace.values()
        if isinstance(value, type) and issubclass(value, Pipeline) and value is not Pipeline
    ]
    # A base of others needs no name of its own.
    return [
        one.document()
        for one in dict.fromkeys(found)
        if one.name is not None or not any(o is not one and issubclass(o, one) for o in found)
    ]
