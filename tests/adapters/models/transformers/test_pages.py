import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asynclm.adapters.models.transformers.pages import Extent, Move, OutOfPagesError, Pages


def test_an_extent_grows_in_place_while_the_pages_behind_it_are_free() -> None:
    pages = Pages(10)
    assert pages.resize({1: 2}) == []
    assert pages.resize({1: 7}) == []
    assert pages.extent(1) == Extent(0, 7)
    assert pages.free == 3


def test_extents_are_laid_out_with_room_to_double() -> None:
    pages = Pages(16)
    pages.resize({1: 2, 2: 2})
    assert pages.resize({1: 4}) == []
    assert pages.resize({2: 4}) == []


def test_an_extent_that_is_hemmed_in_moves() -> None:
    pages = Pages(8)
    pages.resize({1: 1, 2: 1})
    first = pages.extent(1)
    moves = pages.resize({1: 3})
    assert moves == [Move(1, first.start, pages.extent(1).start)]


def test_a_request_that_is_too_big_changes_nothing() -> None:
    pages = Pages(4)
    pages.resize({1: 2})
    with pytest.raises(OutOfPagesError, match="3 pages are needed, 2 are free"):
        pages.resize({1: 3, 2: 2})
    assert (pages.extent(1).size, pages.extent(2).size, pages.used) == (2, 0, 2)


def test_what_is_free_in_all_can_always_be_had_in_one_piece() -> None:
    pages = Pages(6)
    pages.resize(dict.fromkeys(range(6), 1))
    for owner in (0, 2, 4):
        pages.release(owner)
    moves = pages.resize({9: 3})
    assert pages.extent(9).size == 3
    assert moves
    assert pages.free == 0


def test_shrinking_makes_room_for_others_in_the_same_request() -> None:
    pages = Pages(4)
    pages.resize({1: 4})
    pages.resize({2: 3, 1: 1})
    assert (pages.extent(1).size, pages.extent(2).size) == (1, 3)


class Books(RuleBasedStateMachine):
    """Every page is written with its owner and place; moves carry that along as the arena would."""

    @initialize(total=st.integers(1, 24))
    def begin(self, total: int) -> None:
        self.pages = Pages(total)
        self.memory: list[tuple[int, int] | None] = [None] * total
        self.sizes: dict[int, int] = {}

    @rule(sizes=st.dictionaries(st.integers(0, 5), st.integers(0, 12), min_size=1, max_size=3))
    def resize(self, sizes: dict[int, int]) -> None:
        wanted = self.sizes | sizes
        if sum(wanted.values()) > self.pages.total:
            before = {owner: self.pages.extent(owner) for owner in range(6)}
            with pytest.raises(OutOfPagesError):
                self.pages.resize(sizes)
            assert before == {owner: self.pages.extent(owner) for owner in range(6)}
            return
        moves = self.pages.resize(sizes)
        for owner, size in sizes.items():
            self.sizes[owner] = min(size, self.sizes.get(owner, 0))  # so much of it was written before
        for owner, source, target in moves:
            kept = self.sizes.get(owner, 0)
            self.memory[target : target + kept] = self.memory[source : source + kept]
        for owner in sizes:
            extent = self.pages.extent(owner)
            assert [self.memory[extent.start + i] for i in range(self.sizes[owner])] == [
                (owner, i) for i in range(self.sizes[owner])
            ]
        self.sizes = {owner: size for owner, size in wanted.items() if size}
        for owner, size in self.sizes.items():
            start = self.pages.extent(owner).start
            if owner in sizes:
                self.memory[start : start + size] = [(owner, i) for i in range(size)]

    @rule(owner=st.integers(0, 5))
    def release(self, owner: int) -> None:
        self.pages.release(owner)
        self.sizes.pop(owner, None)

    @invariant()
    def nobody_lost_a_page(self) -> None:
        for owner, size in self.sizes.items():
            start = self.pages.extent(owner).start
            assert self.memory[start : start + size] == [(owner, i) for i in range(size)]

    @invariant()
    def extents_are_apart_and_counted(self) -> None:
        extents = [self.pages.extent(owner) for owner in range(6)]
        assert [extent.size for extent in extents] == [self.sizes.get(owner, 0) for owner in range(6)]
        taken = [page for extent in extents for page in range(extent.start, extent.end)]
        assert len(taken) == len(set(taken)) == self.pages.used
        assert all(0 <= page < self.pages.total for page in taken)
        assert self.pages.free == self.pages.total - len(taken)


TestBooks = Books.TestCase
