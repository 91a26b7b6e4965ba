"""Conversations as Ray actors, and what lives around them."""

from palaver.actors.approvals import ApprovalRequest, Approved, Decision, Denied
from palaver.actors.budget import Budget
from palaver.actors.context import Compaction
from palaver.actors.convo import Convo, ConvoHandle
from palaver.actors.errors import (
    AmbiguousToolCall,
    BudgetExceeded,
    CompactionFailed,
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
from palaver.actors.feed import Compacted, ConvoEvent, Responded, Retrying, RunEnded, ToolEnded, ToolStarted
from palaver.actors.items import Item, ItemResult
from palaver.actors.kin import Branch, State
from palaver.actors.listener import ConvoInfo, Listener, NoopListener
from palaver.actors.replies import events, reply, results
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
    "Compacted",
    "Compaction",
    "CompactionFailed",
    "Convo",
    "ConvoBusy",
    "ConvoCancelled",
    "ConvoClosed",
    "ConvoEvent",
    "ConvoHandle",
    "ConvoInfo",
    "ConvoUnreachable",
    "CumulativeUsage",
    "Decision",
    "Denied",
    "Item",
    "ItemResult",
    "Listener",
    "NoopListener",
    "NothingToSend",
    "Responded",
    "Retrying",
    "RunEnded",
    "RunResult",
    "State",
    "StoppedCall",
    "StoppedConvo",
    "TooManySubConvos",
    "ToolEnded",
    "ToolStarted",
    "UnknownConvo",
    "UnknownPrice",
    "UnknownToolCall",
    "events",
    "reply",
    "results",
]
