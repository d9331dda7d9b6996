import numpy as np
import pytest
import torch

from ssae.theory import candidates_of, coarsening_path, merge_tree, solve_large_dictionary
from ssae.theory.coarsening import at_most, directions_of
from ssae.theory.convex import LargeDictionary, largest_gamma
from tests.theory.problems import shared_tokens


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return shared_tokens(50, 6, 8, noise=0.05)


def test_a_path_is_the_solution_of_every_gamma_in_the_given_order(tokens):
    A, gammas = candidates_of(tokens), [0.02, 0.3, 0.1, 0.02, 0.0]
    path = coarsening_path(tokens, A, 0.1, gammas, tolerance=1e-5)
    assert len(path) == 5
    for gamma, found in zip(gammas, path, strict=True):
        alone = solve_large_dictionary(tokens, A, 0.1, gamma, tolerance=1e-5)
        assert found.objective == pytest.approx(alone.objective, rel=1e-5)
        assert found.gap <= 1e-5
        Z = np.zeros((50, len(A)))
        Z[:, found.used] = found.z
        left = tokens.numpy() - Z @ A.numpy()
        groups = np.linalg.norm(Z, axis=0).sum()
        F = (np.square(left).sum() / 2 + 0.1 * Z.sum()) / 50 + gamma / 50**0.5 * groups
        assert found.objective == pytest.approx(F, rel=1e-10)
    assert coarsening_path(tokens, A, 0.1, []) == []


def test_directions_become_fewer_and_the_optimum_dearer_as_their_price_rises(tokens):
    A = candidates_of(tokens)
    gammas = [0.01, 0.05, 0.1, 0.2, 0.4, 1.1 * largest_gamma(tokens, A, 0.1)]
    path = coarsening_path(tokens, A, 0.1, gammas, tolerance=1e-6)
    used = [found.num_used for found in path]
    assert used == sorted(used, reverse=True)
    assert len(set(used)) == 6
    assert used[0] > 20
    assert used[-1] == 0
    objectives = [found.objective for found in path]
    assert objectives == sorted(objectives)


def test_directions_in_use_are_those_of_the_candidates(tokens):
    A = candidates_of(tokens)
    found = solve_large_dictionary(tokens, A, 0.1, 0.2)
    assert torch.equal(directions_of(found, A), A[found.used])


def solution(used: list[int], z: list[list[float]]) -> LargeDictionary:
    return LargeDictionary(np.array(used, int), np.array(z).reshape(4, len(used)), 1.0, 1.0, 0)


def test_a_direction_gives_way_to_the_one_that_stands_where_it_stood():
    fine = solution([3, 5, 8], [[1, 0, 0], [2, 0, 1], [0, 1, 0], [0, 0, 4]])
    middle = solution([3, 6], [[1, 0], [1, 2], [0, 3], [2, 1]])
    coarse = solution([6], [[0], [1], [1], [0]])
    merges = merge_tree([fine, middle, coarse])
    # 5 fired on token 2 alone, where 6 does; 8 on tokens 1 and 3: 1 + 4 * 2 with 3, 2 + 4 with 6.
    assert merges[0] == (1, 5, 6, 1.0, 1)
    assert merges[1][:3] == (1, 8, 3)
    assert merges[1].share == pytest.approx(9 / 15)
    assert merges[1].num_tokens == 2
    # 3 fired on tokens 0, 1 and 3; 6 is left on token 1 alone.
    assert merges[2:] == [(2, 3, 6, 1.0, 3)]


def test_what_nothing_takes_over_has_no_parent():
    fine = solution([2, 4], [[1, 0], [0, 1], [0, 0], [0, 0]])
    nothing = solution([], [[]] * 4)
    elsewhere = solution([4], [[0], [0], [1], [0]])
    assert merge_tree([fine, nothing]) == [(1, 2, -1, 0.0, 1), (1, 4, -1, 0.0, 1)]
    assert merge_tree([fine, elsewhere]) == [(1, 2, -1, 0.0, 1)]
    assert merge_tree([fine]) == merge_tree([]) == merge_tree([fine, fine]) == []


def test_tokens_of_two_clusters_merge_within_them():
    generator = torch.Generator().manual_seed(1)
    centres = torch.eye(4).double()[:2].repeat_interleave(10, 0)
    x = centres + 0.05 * torch.randn(20, 4, generator=generator).double()
    path = coarsening_path(x, candidates_of(x), 0.05, [0.001, 0.01, 0.1, 0.3], tolerance=1e-5)
    assert path[0].num_used > 6
    assert set(path[-1].used // 10) == {0, 1}
    merges = merge_tree(path)
    assert len(merges) >= path[0].num_used - path[-1].num_used > 2
    for merge in merges:
        assert merge.parent // 10 == merge.child // 10
        assert merge.share > 0.2


@pytest.mark.parametrize("num", [1, 3, 8, 20])
def test_at_most_uses_no_more_than_it_may_and_nearly_as_many(tokens, num):
    A = candidates_of(tokens)
    gamma, found = at_most(tokens, A, 0.1, num)
    assert num / 2 <= found.num_used <= num
    again = solve_large_dictionary(tokens, A, 0.1, gamma, tolerance=1e-6)
    assert found.objective == pytest.approx(again.objective, rel=2e-3)
    assert found.bound <= again.objective


def test_at_most_as_many_as_there_are_uses_what_the_smallest_gamma_leaves(tokens):
    gamma, found = at_most(tokens, candidates_of(tokens), 0.1, 1000)
    assert found.num_used <= 50
    assert gamma < 0.01 * largest_gamma(tokens, candidates_of(tokens), 0.1)


def test_at_most_none_uses_none(tokens):
    A = candidates_of(tokens)
    gamma, found = at_most(tokens, A, 0.1, 0)
    assert found.num_used == 0
    top = largest_gamma(tokens, A, 0.1)
    assert 0.9 * top < gamma <= top


def test_at_most_of_tokens_below_the_price_uses_none(tokens):
    _, found = at_most(tokens, candidates_of(tokens), 100.0, 3)
    assert found.num_used == 0


def test_prices_that_are_none_are_refused(tokens):
    A = candidates_of(tokens)
    with pytest.raises(ValueError, match="finite number of at least 0"):
        coarsening_path(tokens, A, 0.1, [0.1, -0.1])
    with pytest.raises(ValueError, match="lam must be"):
        coarsening_path(tokens, A, -0.1, [0.1])
    with pytest.raises(ValueError, match="lam must be"):
        at_most(tokens, A, float("nan"), 3)
    with pytest.raises(ValueError, match="x must have shape"):
        at_most(tokens[:, :3], A, 0.1, 3)
