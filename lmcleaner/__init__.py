"""Records fine-tuning runs, removes the influence of training samples from the model, and proves what it did.

Names load on first use, so that importing the package loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmcleaner.audit.check import AuditReport, audit_model
    from lmcleaner.audit.options import AuditOptions, VerifyOptions
    from lmcleaner.audit.verify import verify_audit
    from lmcleaner.choices import (
        Codec,
        CurvatureKind,
        Denominator,
        HessianMode,
        Level,
        ModelDtype,
        OptimizerName,
        Propagation,
        Rounding,
        Scheduler,
    )
    from lmcleaner.curvature.matrix import Curvature
    from lmcleaner.experiments.description import read_experiments
    from lmcleaner.experiments.running import run_experiments
    from lmcleaner.formats.errors import (
        DamagedError,
        DivergedError,
        ExistsError,
        InsufficientLogError,
        LmcleanerError,
        MismatchError,
        NotFoundError,
        ResourceError,
        UsageError,
        VersionError,
    )
    from lmcleaner.formats.pruning import Pruning, PruningPlan, prune
    from lmcleaner.formats.reader import TrainingLog
    from lmcleaner.formats.samples import Sample
    from lmcleaner.inspection.find import Match, find_text
    from lmcleaner.inspection.summary import Summary, summarize
    from lmcleaner.inspection.verify import Verification, verify
    from lmcleaner.recording.callback import LMCleanerCallback
    from lmcleaner.recording.curvature import CurvatureOptions, CurvatureResult, record_curvature
    from lmcleaner.recording.describe import RunDescription
    from lmcleaner.recording.logger import TrainingLogger
    from lmcleaner.recording.options import RecordOptions, WatchOptions
    from lmcleaner.recording.recorder import Recorder
    from lmcleaner.recording.resume import restore
    from lmcleaner.recording.script import record_script
    from lmcleaner.recording.training import RecordResult, record
    from lmcleaner.recording.unfinished import resumed_options
    from lmcleaner.recording.watch import Watch
    from lmcleaner.reporting.audit_page import audit_page
    from lmcleaner.reporting.log_page import log_page
    from lmcleaner.unlearning.options import Thresholds, UnlearnOptions
    from lmcleaner.unlearning.run import UnlearnResult, unlearn
    from lmcleaner.unlearning.trainers import LMCleanerBatchLevel, LMCleanerSampleLevel

__all__ = [
    "AuditOptions",
    "AuditReport",
    "Codec",
    "Curvature",
    "CurvatureKind",
    "CurvatureOptions",
    "CurvatureResult",
    "DamagedError",
    "Denominator",
    "DivergedError",
    "ExistsError",
    "HessianMode",
    "InsufficientLogError",
    "LMCleanerBatchLevel",
    "LMCleanerCallback",
    "LMCleanerSampleLevel",
    "Level",
    "LmcleanerError",
    "Match",
    "MismatchError",
    "ModelDtype",
    "NotFoundError",
    "OptimizerName",
    "Propagation",
    "Pruning",
    "PruningPlan",
    "RecordOptions",
    "RecordResult",
    "Recorder",
    "ResourceError",
    "Rounding",
    "RunDescription",
    "Sample",
    "Scheduler",
    "Summary",
    "Thresholds",
    "TrainingLog",
    "TrainingLogger",
    "UnlearnOptions",
    "UnlearnResult",
    "UsageError",
    "Verification",
    "VerifyOptions",
    "VersionError",
    "Watch",
    "WatchOptions",
    "audit_model",
    "audit_page",
    "find_text",
    "log_page",
    "prune",
    "read_experiments",
    "record",
    "record_curvature",
    "record_script",
    "restore",
    "resumed_options",
    "run_experiments",
    "summarize",
    "unlearn",
    "verify",
    "verify_audit",
]

_HOMES = {
    "lmcleaner.audit.check": ("AuditReport", "audit_model"),
    "lmcleaner.audit.options": ("AuditOptions", "VerifyOptions"),
    "lmcleaner.audit.verify": ("verify_audit",),
    "lmcleaner.curvature.matrix": ("Curvature",),
    "lmcleaner.experiments.description": ("read_experiments",),
    "lmcleaner.experiments.running": ("run_experiments",),
    "lmcleaner.formats.pruning": ("Pruning", "PruningPlan", "prune"),
    "lmcleaner.formats.reader": ("TrainingLog",),
    "lmcleaner.formats.samples": ("Sample",),
    "lmcleaner.inspection.find": ("Match", "find_text"),
    "lmcleaner.inspection.summary": ("Summary", "summarize"),
    "lmcleaner.inspection.verify": ("Verification", "verify"),
    "lmcleaner.recording.callback": ("LMCleanerCallback",),
    "lmcleaner.recording.curvature": ("CurvatureOptions", "CurvatureResult", "record_curvature"),
    "lmcleaner.recording.describe": ("RunDescription",),
    "lmcleaner.recording.logger": ("TrainingLogger",),
    "lmcleaner.recording.options": ("RecordOptions", "WatchOptions"),
    "lmcleaner.recording.recorder": ("Recorder",),
    "lmcleaner.recording.resume": ("restore",),
    "lmcleaner.recording.script": ("record_script",),
    "lmcleaner.recording.training": ("RecordResult", "record"),
    "lmcleaner.recording.unfinished": ("resumed_options",),
    "lmcleaner.recording.watch": ("Watch",),
    "lmcleaner.reporting.audit_page": ("audit_page",),
    "lmcleaner.reporting.log_page": ("log_page",),
    "lmcleaner.unlearning.options": ("Thresholds", "UnlearnOptions"),
    "lmcleaner.unlearning.run": ("UnlearnResult", "unlearn"),
    "lmcleaner.unlearning.trainers": ("LMCleanerBatchLevel", "LMCleanerSampleLevel"),
    "lmcleaner.choices": (
        "Codec", "CurvatureKind", "Denominator", "HessianMode", "Level", "ModelDtype", "OptimizerName", "Propagation",
        "Rounding", "Scheduler",
    ),
    "lmcleaner.formats.errors": (
        "DamagedError", "DivergedError", "ExistsError", "InsufficientLogError", "LmcleanerError", "MismatchError",
        "NotFoundError", "ResourceError", "UsageError", "VersionError",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads a public name from its module."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'lmcleaner' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return __all__
