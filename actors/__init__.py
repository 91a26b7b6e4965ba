"""Conversations as Ray actors, and what lives around them."""

from palaver.actors.approvals import ApprovalRequest, Approved, Decision, Denied
from palaver.actors.budget import Budget
from palaver.actors.convo import Convo, ConvoHandle
from palaver.actors.errors import (
    AmbiguousToolCall,
    BudgetExceeded,
    ConvoBusy,
    ConvoCancelled,
    ConvoClosed,
    ConvoUnreachable,
    NothingToSend,
    TooManySubConvos,
    UnknownConvo,
    UnknownPrice,
    UnknownToolCall,
)
from palaver.actors.kin import Branch, State
from palaver.actors.listener import ConvoInfo, Listener, NoopListener
from palaver.actors.replies import reply
from palaver.actors.report import CancelReport, StoppedCall, StoppedConvo
from palaver.actors.result import RunResult
from palaver.actors.usage import CumulativeUsage

__all__ = [
    "AmbiguousToolCall",
    "ApprovalRequest",
    "Approved",
    "Branch",
    "Budget",
    "BudgetExceeded",
    "CancelReport",
    "Convo",
    "ConvoBusy",
    "ConvoCancelled",
    "ConvoClosed",
    "ConvoHandle",
    "ConvoInfo",
    "ConvoUnreachable",
    "CumulativeUsage",
    "Decision",
    "Denied",
    "Listener",
    "NoopListener",
    "NothingToSend",
    "RunResult",
    "State",
    "StoppedCall",
    "StoppedConvo",
    "TooManySubConvos",
    "UnknownConvo",
    "UnknownPrice",
    "UnknownToolCall",
    "reply",
]
