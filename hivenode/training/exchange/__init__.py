"""Workers average vectors directly with each other: serverless, and bit-identical whoever dies whenever."""

from hivenode.training.exchange.errors import Absurd, Excluded, Mismatch, NonFinite, ViewChanged
from hivenode.training.exchange.exchange import Exchange, Reduced, Seat
from hivenode.training.exchange.keys import WorkerKey
from hivenode.training.exchange.views import View

__all__ = [
    "Absurd",
    "Exchange",
    "Excluded",
    "Mismatch",
    "NonFinite",
    "Reduced",
    "Seat",
    "View",
    "ViewChanged",
    "WorkerKey",
]
