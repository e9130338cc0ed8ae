"""Which pages of the KV cache belong to which sequence. Bookkeeping only: what it says has moved, others copy.

Each owner has one *contiguous* extent, so that attention reads a sequence's keys as a plain slice and a block table is
a range. An extent grows in place while the pages behind it are free; new extents are put where some are left free
behind them (slack), so that this is the rule. Slack belongs to nobody and is given away when it is needed. A request
is refused only if there aren't enough free pages in all: where they don't lie together, extents are moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Extent(NamedTuple):
    """`size` pages from `start` on."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The page behind the last."""
        return self.start + self.size


class Move(NamedTuple):
    """The contents of `owner` now belong at page `target`, no longer at `source`. The two may overlap."""

    owner: int
    source: int
    target: int


class OutOfPagesError(Exception):
    """Fewer than `needed` pages are free. Nothing was changed."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} pages are needed, {free} are free")
        self.needed = needed
        self.free = free


class Pages:
    """`total` pages, handed out in contiguous extents, one for each owner."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._extents: dict[int, Extent] = {}

    @property
    def free(self) -> int:
        """How many pages belong to nobody."""
        return self.total - self.used

    def extent(self, owner: int) -> Extent:
        """The owner's pages; empty for one that has none."""
        return self._extents.get(owner, Extent(0, 0))

    def resize(self, sizes: Mapping[int, int]) -> list[Move]:
        """Give every owner named exactly that many pages, all or none. A size of 0 gives all of them back.

        Returns the moves that keep contents where they belong: to be carried out in order, each before any page is
        written. Raises `OutOfPagesError`.
        """
        change = sum(size - self.extent(owner).size for owner, size in sizes.items())
        if change > self.free:
            raise OutOfPagesError(change, self.free)
        moves: list[Move] = []
        # Shrink first: what that frees is there for the others.
        for owner, size in sizes.items():
            if size <= self.extent(owner).size:
                self._set(owner, self.extent(owner)._replace(size=size))
        for owner, size in sizes.items():
            if size > self.extent(owner).size:
                moves += self._grow(owner, size)
        return moves

    def release(self, owner: int) -> None:
        """Take an owner's pages back; one that has none is ignored."""
        self._set(owner, Extent(0, 0))

    def _set(self, owner: int, extent: Extent) -> None:
        self.used += extent.size - self.extent(owner).size
        if extent.size:
            self._extents[owner] = extent
        else:
            self._extents.pop(owner, None)

    def _grow(self, owner: int, size: int) -> list[Move]:
        """Enough pages are known to be free."""
        old = self.extent(owner)
        if old.size and self._room_behind(old) >= size - old.size:
            self._set(owner, old._replace(size=size))
            return []
        # Room to double in place makes the copies of a growing sequence a constant share of its tokens.
        start = self._find(size, slack=size)
        if start is None:
            start = self._find(size, slack=0)
        if start is None:
            return self._compact(owner, size)
        self._set(owner, Extent(start, size))
        return [Move(owner, old.start, start)] if old.size else []

    def _room_behind(self, extent: Extent) -> int:
        return min((e.start for e in self._extents.values() if e.start >= extent.end), default=self.total) - extent.end

    def _find(self, size: int, slack: int) -> int | None:
        """The first place for `size` pages that leaves `slack` free, shared with nobody, behind the one before it and
        behind the new one.
        """
        end = 0
        before = 0  # slack that the extent before keeps
        for extent in (*self._sorted(), Extent(self.total, 0)):
            if end + before + size + slack <= extent.start:
                return end + before
            end = extent.end
            before = min(slack, extent.size)
        return None

    def _compact(self, grown: int, size: int) -> list[Move]:
        """Move all extents together, with `grown` at its new size among them."""
        olds = self._extents
        order = [owner for owner, _ in sorted(olds.items(), key=lambda item: item[1].start)]
        if grown not in olds:
            order.append(grown)
        news: dict[int, Extent] = {}
        end = 0
        for owner in order:
            news[owner] = Extent(end, size if owner == grown else olds[owner].size)
            end = news[owner].end
        moved = [owner for owner in order if owner in olds and news[owner].start != olds[owner].start]
        down = [owner for owner in moved if news[owner].start < olds[owner].start]
        up = [owner for owner in moved if news[owner].start > olds[owner].start]
        moves = [Move(owner, olds[owner].start, news[owner].start) for owner in _in_safe_order(down, up)]
        for owner in order:
            self._set(owner, news[owner])
        return moves

    def _sorted(self) -> list[Extent]:
        return sorted(self._extents.values())


def _in_safe_order(down: list[int], up: list[int]) -> Iterable[int]:
    """No move may overwrite what hasn't moved yet. Extents keep their order, so downward moves are safe from the lowest
    on, then upward moves from the highest on: only those behind the grown extent go up, and of these the first ones, so
    nothing that goes down has its new place where one of them still stands.
    """
    return (*down, *reversed(up))
