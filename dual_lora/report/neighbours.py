"""Which runs had their card to themselves. The seconds of the others say what their neighbours did."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from dual_lora.records.schema import Record


def alone(records: Iterable[Record]) -> frozenset[str]:
    """Return the ids of runs during which no other recorded run used one of their cards.

    A record names its cards (`execution.cards`); an older one only their kind, and then every run on that kind of card
    is a neighbour. A run is not known to have been alone if it does not say when it ran, if it was interrupted (its
    seconds are of several times), or if its sweep ran several at a time: a neighbour may have left no record.
    """
    timed = sorted(
        ((*times, record) for record in records if (times := span(record)) is not None), key=lambda entry: entry[0]
    )
    shared: set[str] = set()
    active: list[tuple[datetime, Record]] = []
    for started, finished, record in timed:
        active = [(end, other) for end, other in active if end > started]
        for _, other in active:
            if _share(record, other):
                shared |= {record.run_id, other.run_id}
        active.append((finished, record))
    certain = {r.run_id for _, _, r in timed if r.parallel == 1 and not r.execution.get("resumed_from")}
    return frozenset(certain - shared)


def span(record: Record) -> tuple[datetime, datetime] | None:
    try:
        times = (
            datetime.fromisoformat(str(record.origin.get("started"))),
            datetime.fromisoformat(str(record.origin.get("finished"))),
        )
    except ValueError:
        return None
    return times if all(time.tzinfo is not None for time in times) else None


def _share(one: Record, other: Record) -> bool:
    ours, theirs = one.execution.get("cards"), other.execution.get("cards")
    if ours and theirs:
        return bool(set(ours) & set(theirs))
    return one.execution.get("device") == other.execution.get("device")
