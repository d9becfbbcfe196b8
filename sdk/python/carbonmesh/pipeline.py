"""Pipelines as classes; each is a pipeline document of the cluster."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Dict, List, Optional, Sequence, Type, Union

from .phase import Phase


class Pipeline:
    """Phases in their order: classes, job types, or tables as in a pipeline document.

    Whatever else a document may say (``replicas``, ``preset``, ``retention``...) goes into
    ``options``.
    """

    name: ClassVar[Optional[str]] = None
    phases: ClassVar[Sequence[Union[Type[Phase], str, Dict[str, Any]]]] = ()
    options: ClassVar[Dict[str, Any]] = {}

    @classmethod
    def document(cls) -> Dict[str, Any]:
        """Its document, as ``carbonmesh pipeline apply`` takes it.

        Raises ``TypeError`` if it has no name or no phases.
        """
        if not isinstance(cls.name, str):
            raise TypeError(f"class {cls.__name__} has no name: add, for example, name = 'invoices'")
        if not cls.phases:
            raise TypeError(f"pipeline {cls.name!r} has no phases: add phases = [FirstPhase]")
        if getattr(cls, "backend", None) is not None:
            logging.getLogger("carbonmesh").info(
                "pipeline %r: `backend` is not needed any more: nodes keep jobs themselves", cls.name
            )
        return {"name": cls.name, **cls.options, "phases": [cls._phase(one) for one in cls.phases]}

    @classmethod
    def _phase(cls, one: Union[Type[Phase], str, Dict[str, Any]]) -> Union[str, Dict[str, Any]]:
        if isinstance(one, (str, dict)):
            return one
        if isinstance(one, type) and issubclass(one, Phase) and one.job_type is not None:
            return one.job_type
        raise TypeError(
            f"pipeline {cls.name!r}: {one!r} is no phase: give a class with a job_type, a job type, "
            "or a table"
        )


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
