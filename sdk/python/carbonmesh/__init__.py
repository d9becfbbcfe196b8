"""Phases and pipelines of CarbonMesh in Python, and a client of a cluster.

A worker is a file with classes of ``Phase``; ``carbonmesh bundle FILE`` runs it.
"""

from .client import CarbonMeshError, Client, PipelineClient, Refused, TimeOver, Unreachable
from .phase import Cancelled, Context, Fatal, Phase, Retry, Session, phase
from .pipeline import Pipeline

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "CarbonMeshError",
    "Client",
    "Context",
    "Fatal",
    "Phase",
    "Pipeline",
    "PipelineClient",
    "Refused",
    "Retry",
    "Session",
    "TimeOver",
    "Unreachable",
    "phase",
]
