"""Which runs had their card to themselves, as the seconds of the others say what their neighbours did; GPU time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dual_lora.records.schema import Record


@dataclass(frozen=True)
class _Timed:
    started: datetime
    finished: datetime
    record: Record


def alone(records: Iterable[Record]) -> frozenset[str]:
    """Return the ids of runs during which no other recorded run used one of their cards.

    A record names its cards (`execution.cards`); an older one only their kind, and then every run on that kind of card
    is a neighbour. A run is not known to have been alone if it does not say when it ran, if it was interrupted (its
    seconds are of several times), or if its sweep ran several at a time: a neighbour may have left no record.
    """
    timed = sorted(
        (_Timed(*times, record) for record in records if (times := span(record)) is not None),
        key=lambda entry: entry.started,
    )
    by_device, by_card = defaultdict[str, list[_Timed]](list), defaultdict[str, list[_Timed]](list)
    for entry in timed:
        by_device[str(entry.record.execution.get("device"))].append(entry)
        for card in _cards(entry.record):
            by_card[card].append(entry)
    shared: set[str] = set()
    for entries in by_device.values():
        shared |= {entry.record.run_id for entry in _overlapping(entries) if not _cards(entry.record)}
    for card, entries in by_card.items():
        unknown = [e for e in by_device[str(entries[0].record.execution.get("device"))] if not _cards(e.record)]
        merged = sorted([*entries, *unknown], key=lambda entry: entry.started)
        shared |= {entry.record.run_id for entry in _overlapping(merged) if card in _cards(entry.record)}
    certain = {e.record.run_id for e in timed if e.record.parallel == 1 and not e.record.execution.get("resumed_from")}
    return frozenset(certain - shared)


def gpu_minutes(records: Iterable[Record]) -> float:
    """Return how long the runs kept GPUs busy, from start to end; what ran side by side on one card counts once."""
    by_card = defaultdict[str, list[tuple[datetime, datetime]]](list)
    for record in records:
        device, times = str(record.execution.get("device") or "CPU"), span(record)
        if times is not None and not device.startswith("CPU"):
            unnamed = [f"{device} {place}" for place in range(int(record.execution.get("world_size") or 1))]
            for card in _cards(record) or unnamed:
                by_card[card].append(times)
    seconds = 0.0
    for spans in by_card.values():
        until = min(spans)[0]
        for started, finished in sorted(spans):
            seconds += max(0.0, (finished - max(started, until)).total_seconds())
            until = max(until, finished)
    return seconds / 60


def devices(records: Iterable[Record]) -> str:
    """Return on what some runs were made, each kind once."""
    return ", ".join(sorted({str(r.execution["device"]) for r in records if r.execution.get("device")}))


def span(record: Record) -> tuple[datetime, datetime] | None:
    try:
        times = (
            datetime.fromisoformat(str(record.origin.get("started"))),
            datetime.fromisoformat(str(record.origin.get("finished"))),
        )
    except ValueError:
        return None
    return times if all(time.tzinfo is not None for time in times) else None


def _overlapping(entries: Sequence[_Timed]) -> Iterator[_Timed]:
    """Yield those of some runs, sorted by start, during which another of them ran."""
    latest: datetime | None = None  # end of the runs before
    for entry, after in zip(entries, [*entries[1:], None], strict=True):
        if (latest is not None and latest > entry.started) or (after is not None and after.started < entry.finished):
            yield entry
        latest = entry.finished if latest is None else max(latest, entry.finished)


def _cards(record: Record) -> list[str]:
    return record.execution.get("cards") or []
