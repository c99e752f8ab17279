"""Text in, verdict out."""

from verifiers.jobs import VERIFIERS, Job, gold_fault
from verifiers.pool import VerifierPool
from verifiers.verdict import VERSIONS, Outcome, Question, Verdict, Verifier, reward

__all__ = [
    "VERIFIERS",
    "VERSIONS",
    "Job",
    "Outcome",
    "Question",
    "Verdict",
    "Verifier",
    "VerifierPool",
    "gold_fault",
    "reward",
]
