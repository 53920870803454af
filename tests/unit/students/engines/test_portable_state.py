"""How the atoms of a checkpoint are dealt to the ranks that write them."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ray_distill.students.engines.portable_state import assign_writers


@given(sizes=st.lists(st.integers(0, 1000), max_size=40), world=st.integers(1, 9))
def test_the_fullest_rank_is_within_the_largest_atom_of_the_mean(sizes: list[int], world: int) -> None:
    """Every atom has one owner; nobody holds more than an even share and one atom besides."""
    owners = assign_writers(sizes, world)
    held = Counter[int]()
    for size, owner in zip(sizes, owners, strict=True):
        assert 0 <= owner < world
        held[owner] += size
    assert max(held.values(), default=0) <= sum(sizes) / world + max(sizes, default=0)
