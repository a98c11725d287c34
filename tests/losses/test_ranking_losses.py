"""The losses of stage 1: values, gradients, and what must not change them."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lr2ppo.evaluation.metrics import ndcg
from lr2ppo.losses import RANKING_LOSSES
from lr2ppo.losses.listwise import listmle_loss, listnet_loss, softmax_loss
from lr2ppo.losses.pairwise import lambdarank_loss, ndcg_loss2pp_loss, ranknet_loss
from lr2ppo.losses.pointwise import ordinal_loss, smooth_l1_loss
from lr2ppo.losses.smooth_ndcg import _neural_sort, _scale, approx_ndcg_loss, neural_ndcg_loss

MODERATE = settings(deadline=None, max_examples=40)

Loss = Callable[..., Tensor]
Batch = tuple[Tensor, Tensor, Tensor]
LOSSES: dict[str, Loss] = {
    **RANKING_LOSSES,
    "ordinal, sigma 3": partial(ordinal_loss, sigma=3.0),
    "lambdarank@2": partial(lambdarank_loss, sigma=0.5, k=2),
    "ndcg_loss2pp@2": partial(ndcg_loss2pp_loss, mu=2.0, k=2),
    "approx_ndcg, alpha 1": partial(approx_ndcg_loss, alpha=1.0),
    "neural_ndcg@2": partial(neural_ndcg_loss, temperature=0.5, k=2),
}
# They compare scores with grades, so a shift of the scores matters and a list of one grade teaches something.
POINTWISE = {"smooth_l1", "ordinal", "ordinal, sigma 3"}
# The weights of their pairs change with the order.
REWEIGHTED = {"lambdarank", "lambdarank@2", "ndcg_loss2pp", "ndcg_loss2pp@2"}

every_loss = pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items()])
order_losses = pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items() if name not in POINTWISE]
)


@st.composite
def batches(draw: st.DrawFn, most_grade: int = 10) -> Batch:
    """Scores, grades and mask; the scores of a list differ by 0.1 or more, lists may be empty."""
    lists, labels = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    steps = [draw(st.permutations(range(labels))) for _ in range(lists)]
    gaps = torch.tensor([[draw(st.floats(0.1, 1.0)) for _ in range(labels)] for _ in range(lists)])
    scores = gaps.double().cumsum(-1).gather(-1, torch.tensor(steps)) - 2.0
    grades = torch.tensor([[draw(st.integers(0, most_grade)) for _ in range(labels)] for _ in range(lists)])
    lengths = torch.tensor([draw(st.integers(0, labels)) for _ in range(lists)])
    return scores, grades, torch.arange(labels) < lengths.unsqueeze(-1)


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def slope(loss: Loss, scores: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """The value of a loss and its gradient at the scores."""
    scores = scores.detach().clone().requires_grad_()
    value = loss(scores, *others)
    value.backward()
    assert scores.grad is not None
    return value.detach(), scores.grad


@every_loss
def test_the_gradient_is_that_of_the_value(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    grades = torch.tensor([[2, 0, 1, 2, 0], [0, 10, 3, 3, 1], [1, 1, 0, 2, 2], [1, 0, 1, 1, 1]])
    mask = torch.arange(5) < torch.tensor([[5], [4], [2], [0]])
    assert torch.autograd.gradcheck(lambda scores: loss(scores, grades, mask), scores.requires_grad_())


# One list: grades 2, 0, 1 with scores 1.0, 2.0, 0.0, so ranks 2, 1, 3; gains 3, 0, 1.
SCORES, GRADES = double([1.0, 2.0, 0.0]), torch.tensor([[2, 0, 1]])
E1, E2 = math.e, math.e**2
AT_3 = 1 / math.log2(3)
IDEAL = 3 + AT_3


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def bits(difference: float) -> float:
    """The logistic loss of a difference, in bits."""
    return math.log2(1 + math.exp(-difference))


def discount(rank: float) -> float:
    return 1 / math.log2(1 + rank)


def test_smooth_l1_by_hand() -> None:
    expected = (0.85 + 1.85 + 0.85) / 3
    assert smooth_l1_loss(SCORES, GRADES).item() == pytest.approx(expected)


def test_ordinal_by_hand() -> None:
    # Grade 2 is between the thresholds 1.5 and 2.5, grade 0 below 0.5, grade 1 between 0.5 and 1.5.
    chances = [sigmoid(1 - 1.5) - sigmoid(1 - 2.5), 1 - sigmoid(2 - 0.5), sigmoid(0 - 0.5) - sigmoid(0 - 1.5)]
    assert ordinal_loss(SCORES, GRADES).item() == pytest.approx(-sum(map(math.log, chances)) / 3)


def test_ranknet_by_hand() -> None:
    expected = math.log((1 + E1) * (1 + 1 / E1) * (1 + E2)) / 3
    assert ranknet_loss(SCORES, GRADES).item() == pytest.approx(expected)


def test_lambdarank_by_hand() -> None:
    # Pairs: labels 0 and 1 (gains 3, 0; ranks 2, 1), 0 and 2 (3, 1; 2, 3), 2 and 1 (1, 0; 3, 1).
    expected = (
        3 * (discount(1) - discount(2)) * bits(-1)
        + 2 * (discount(2) - discount(3)) * bits(1)
        + 1 * (discount(1) - discount(3)) * bits(-2)
    )
    assert lambdarank_loss(SCORES, GRADES).item() == pytest.approx(expected / IDEAL)
    # Of the first rank alone: swaps of ranks 2 and 3 change nothing, and the ideal gain is 3.
    assert lambdarank_loss(SCORES, GRADES, k=1).item() == pytest.approx((3 * bits(-1) + bits(-2)) / 3)


def test_ndcg_loss2pp_by_hand() -> None:
    step = [discount(distance) - discount(distance + 1) for distance in (1, 2)]
    weights = [
        discount(1) - discount(2) + 4 * step[0],
        discount(2) - discount(3) + 4 * step[0],
        discount(1) - discount(3) + 4 * step[1],
    ]
    expected = (3 * weights[0] * bits(-0.5) + 2 * weights[1] * bits(0.5) + weights[2] * bits(-1)) / IDEAL
    assert ndcg_loss2pp_loss(SCORES, GRADES, sigma=0.5, mu=4.0).item() == pytest.approx(expected)
    # Of the first rank alone: the pair of ranks 2 and 3 does not count, and the ideal gain is 3.
    expected = (3 * (1 + 4 * step[0]) * bits(-1) + (1 + 4 * step[1]) * bits(-2)) / 3
    assert ndcg_loss2pp_loss(SCORES, GRADES, mu=4.0, k=1).item() == pytest.approx(expected)


def test_listnet_by_hand() -> None:
    scored = 1 + E1 + E2
    expected = -(E2 * math.log(E1 / scored) + math.log(E2 / scored) + E1 * math.log(1 / scored)) / (1 + E1 + E2)
    assert listnet_loss(SCORES, GRADES).item() == pytest.approx(expected)


def test_softmax_by_hand() -> None:
    scored = 1 + E1 + E2
    expected = -(2 * math.log(E1 / scored) + math.log(1 / scored)) / 3
    assert softmax_loss(SCORES, GRADES).item() == pytest.approx(expected)


def test_listmle_by_hand() -> None:
    # Label 0 is drawn from all, then label 2 from labels 2 and 1.
    expected = -math.log(E1 / (1 + E1 + E2)) - math.log(1 / (1 + E2))
    assert listmle_loss(SCORES, GRADES).item() == pytest.approx(expected)


def test_labels_of_equal_grades_do_not_compete_in_listmle() -> None:
    loss = listmle_loss(SCORES, torch.tensor([[1, 0, 1]]))
    assert loss.item() == pytest.approx(-math.log(E1 / (E1 + E2)) - math.log(1 / (1 + E2)))


def test_approx_ndcg_by_hand() -> None:
    # The soft ranks of labels 0 and 2; label 1 has no gain.
    ranks = 1 + sigmoid(2 - 1) + sigmoid(0 - 1), 1 + sigmoid(1 - 0) + sigmoid(2 - 0)
    expected = 1 - (3 * discount(ranks[0]) + discount(ranks[1])) / IDEAL
    assert approx_ndcg_loss(SCORES, GRADES, alpha=1.0).item() == pytest.approx(expected)


def test_neural_ndcg_by_hand() -> None:
    # For two labels NeuralSort needs no scaling: the first rank is label 0's with this probability.
    chance = sigmoid((1.0 - 2.5) / 0.5)
    loss = neural_ndcg_loss(double([1.0, 2.5]), torch.tensor([[1, 0]]), temperature=0.5)
    assert loss.item() == pytest.approx(1 - (chance + (1 - chance) * AT_3))
    first = neural_ndcg_loss(double([1.0, 2.5]), torch.tensor([[1, 0]]), temperature=0.5, k=1)
    assert first.item() == pytest.approx(1 - chance)


@MODERATE
@given(batch=batches(), temperature=st.sampled_from([0.1, 1.0, 3.0]))
def test_neural_ndcg_counts_each_gain_once(batch: Batch, temperature: float) -> None:
    scores, _, mask = batch
    permutation = _scale(_neural_sort(scores.where(mask, 0.0), mask, temperature))
    torch.testing.assert_close(permutation.sum(-2), mask.double(), atol=1e-12, rtol=0)


# Padding has grade 9, so that using it shows.
PACKAGE_SCORES = double([0.3, -1.2, 2.1, 0.9, -0.4], [1.5, 0.2, -0.7, 9.0, 9.0])
PACKAGE_GRADES = torch.tensor([[1, 0, 2, 4, 3], [0, 2, 1, 9, 9]])
PACKAGE_MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        pytest.param(ranknet_loss, 0.8375640, id="rankNet"),
        pytest.param(partial(lambdarank_loss, sigma=0.7), 0.9044254, id="lambdaRank_scheme"),
        pytest.param(partial(ndcg_loss2pp_loss, sigma=0.7, mu=3.0), 3.3130276, id="ndcgLoss2PP_scheme"),
        pytest.param(listnet_loss, 1.8165404, id="listNet"),
        pytest.param(listmle_loss, 4.3630977, id="listMLE"),
        pytest.param(partial(approx_ndcg_loss, alpha=3.0), 0.3085161, id="approxNDCGLoss"),
        pytest.param(neural_ndcg_loss, 0.2722988, id="neuralNDCG"),
        pytest.param(partial(neural_ndcg_loss, temperature=3.0, k=2), 0.4763415, id="neuralNDCG@2"),
    ],
)
def test_values_agree_with_allrank(loss: Loss, expected: float) -> None:
    """The values of allRank 1.4.3 from PyPI, in float32; its sums over a batch are halved, for the mean of two lists.

    It gives -NDCG, not 1 - NDCG.
    """
    assert loss(PACKAGE_SCORES, PACKAGE_GRADES, PACKAGE_MASK).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("loss", "first", "both"),
    [
        pytest.param(softmax_loss, 0.7981389, 0.83911896, id="SoftmaxLoss"),
        pytest.param(listmle_loss, 0.7981389, 0.83911896, id="UniqueSoftmaxLoss"),
        pytest.param(approx_ndcg_loss, 1 - 0.655107, 1 - 0.80536866, id="ApproxNDCGLoss"),
    ],
)
def test_values_agree_with_the_documentation_of_tensorflow_ranking(loss: Loss, first: float, both: float) -> None:
    scores, grades = double([0.6, 0.8, 0.0], [0.5, 0.8, 0.4]), torch.tensor([[1, 0, 0], [0, 1, 0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert loss(scores[:1], grades[:1], mask[:1]).item() == pytest.approx(first, abs=1e-6)
    assert loss(scores, grades, mask).item() == pytest.approx(both, abs=1e-6)


@MODERATE
@given(batch=batches(), k=st.sampled_from([1, 2, 3, None]))
def test_lambdarank_weights_a_pair_by_the_ndcg_that_its_swap_changes(batch: Batch, k: int | None) -> None:
    losses = []
    for scores, grades, mask in zip(*batch, strict=True):
        scores, grades = scores[mask], grades[mask]
        pairs = [(i, j) for i in range(len(grades)) for j in range(len(grades)) if grades[i] > grades[j]]
        before = ndcg(scores[None], grades[None], k=k).item()
        changes = []
        for i, j in pairs:
            swapped = scores.clone()
            swapped[[i, j]] = scores[[j, i]]
            changes.append(abs(ndcg(swapped[None], grades[None], k=k).item() - before))
        terms = [change * bits(float(scores[i] - scores[j])) for (i, j), change in zip(pairs, changes, strict=True)]
        losses += [sum(terms)] if pairs else []
    assert lambdarank_loss(*batch, k=k).item() == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-9)


@MODERATE
@given(batch=batches())
def test_ndcg_loss2pp_without_its_own_term_is_lambdarank(batch: Batch) -> None:
    torch.testing.assert_close(ndcg_loss2pp_loss(*batch, mu=0.0, k=2), lambdarank_loss(*batch, k=2))


@pytest.mark.parametrize(
    ("loss", "k"),
    [
        pytest.param(partial(approx_ndcg_loss, alpha=1e4), None, id="approx_ndcg"),
        pytest.param(partial(neural_ndcg_loss, temperature=1e-4), None, id="neural_ndcg"),
        pytest.param(partial(neural_ndcg_loss, temperature=1e-4, k=2), 2, id="neural_ndcg@2"),
    ],
)
@MODERATE
@given(batch=batches())
def test_smooth_ndcg_becomes_ndcg_as_it_sharpens(loss: Loss, k: int | None, batch: Batch) -> None:
    scores, grades, mask = batch
    ordered = [len(set(row[valid].tolist())) > 1 for row, valid in zip(grades, mask, strict=True)]
    exact = 1 - ndcg(scores, grades, mask, k)[torch.tensor(ordered)]
    assert loss(*batch).item() == pytest.approx(exact.sum().item() / max(1, sum(ordered)), abs=1e-6)


@every_loss
@MODERATE
@given(batch=batches(), seed=st.integers(0, 99))
def test_the_order_of_the_labels_and_of_the_lists_does_not_matter(loss: Loss, batch: Batch, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lists, labels = batch[0].shape
    by_list, by_label = (torch.randperm(size, generator=generator) for size in (lists, labels))
    value, gradient = slope(loss, *batch)
    shuffled_value, shuffled_gradient = slope(loss, *(each[by_list][:, by_label] for each in batch))
    torch.testing.assert_close(shuffled_value, value)
    torch.testing.assert_close(shuffled_gradient, gradient[by_list][:, by_label])


@every_loss
@MODERATE
@given(batch=batches())
def test_padding_changes_nothing_and_gets_no_gradient(loss: Loss, batch: Batch) -> None:
    scores, grades, mask = (torch.nn.functional.pad(each, (0, 2, 0, 1)) for each in batch)
    value, gradient = slope(loss, *batch)
    assert torch.all(gradient[~batch[2]] == 0)
    for filling in (0.0, 1e4, math.inf, -math.inf, math.nan):
        padded_value, padded_gradient = slope(loss, scores.where(mask, filling), grades.where(mask, 7), mask)
        torch.testing.assert_close(padded_value, value)
        torch.testing.assert_close(padded_gradient[:-1, :-2], gradient)
        assert torch.all(padded_gradient[~mask] == 0)


@every_loss
def test_without_a_mask_every_label_counts(loss: Loss) -> None:
    torch.testing.assert_close(loss(SCORES, GRADES), loss(SCORES, GRADES, torch.ones(1, 3, dtype=torch.bool)))


@order_losses
@MODERATE
@given(batch=batches(), shift=st.floats(-50, 50))
def test_only_differences_of_scores_matter(loss: Loss, batch: Batch, shift: float) -> None:
    scores, grades, mask = batch
    value, gradient = slope(loss, *batch)
    shifted_value, shifted_gradient = slope(loss, scores + shift, grades, mask)
    torch.testing.assert_close(shifted_value, value, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(shifted_gradient, gradient, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(len(scores)).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "loss", [pytest.param(loss, id=name) for name, loss in LOSSES.items() if name not in POINTWISE | REWEIGHTED]
)
@MODERATE
@given(batch=batches(most_grade=4), data=st.data())
def test_swapping_the_scores_of_a_pair_in_the_wrong_order_lowers_the_loss(
    loss: Loss, batch: Batch, data: st.DataObject
) -> None:
    scores, grades, mask = batch
    wrong = (grades[:, :, None] > grades[:, None, :]) & (scores[:, :, None] < scores[:, None, :])
    pairs = (wrong & mask[:, :, None] & mask[:, None, :]).nonzero().tolist()
    if pairs:
        row, i, j = data.draw(st.sampled_from(pairs))
        swapped = scores.clone()
        swapped[row, [i, j]] = scores[row, [j, i]]
        assert loss(swapped, grades, mask) <= loss(scores, grades, mask) + 1e-12


@order_losses
@MODERATE
@given(batch=batches(most_grade=4))
def test_the_order_of_the_grades_has_a_lower_loss_than_its_reverse(loss: Loss, batch: Batch) -> None:
    _, grades, mask = batch
    right, reverse = loss(grades.double(), grades, mask), loss(-grades.double(), grades, mask)
    assert right < reverse or right == reverse == 0


@pytest.mark.parametrize("name", sorted(REWEIGHTED))
@MODERATE
@given(batch=batches(most_grade=4))
def test_a_descent_step_raises_a_label_that_is_better_than_all_others(name: str, batch: Batch) -> None:
    scores, grades, mask = batch
    best = grades.argmax(-1, keepdim=True)
    _, gradient = slope(LOSSES[name], scores, grades.scatter(-1, best, 5), mask)
    assert torch.all(gradient.gather(-1, best) <= 1e-12)


def over_processes(loss: Loss, parts: list[Batch]) -> list[tuple[Tensor, Tensor]]:
    """Each process's loss and gradient, with the sums over all processes."""
    calls: list[list[Tensor]] = [[] for _ in parts]
    for recorded, part in zip(calls, parts, strict=True):

        def record(value: Tensor, recorded: list[Tensor] = recorded) -> Tensor:
            recorded.append(value.detach())
            return value

        loss(*part, total=record)
    results = []
    for own, part in enumerate(parts):
        others = zip(*(recorded for other, recorded in enumerate(calls) if other != own), strict=True)
        results.append(slope(partial(loss, total=lambda value, others=others: value + sum(next(others))), *part))
    return results


@every_loss
@MODERATE
@given(batch=batches(), data=st.data())
def test_a_batch_split_over_processes_has_the_same_loss_and_gradient(
    loss: Loss, batch: Batch, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(batch[0])))
    value, gradient = slope(loss, *batch)
    scores, grades, mask = batch
    parts = [(scores[:cut], grades[:cut], mask[:cut]), (scores[cut:], grades[cut:], mask[cut:])]
    (first, first_gradient), (second, second_gradient) = over_processes(loss, parts)
    torch.testing.assert_close(first, value)
    torch.testing.assert_close(second, value)
    torch.testing.assert_close(torch.cat([first_gradient, second_gradient]), gradient)


@every_loss
@pytest.mark.parametrize("grade", [0, 1, 10])
def test_lists_without_an_order_teach_no_order(loss: Loss, grade: int) -> None:
    # Labels of one grade, a single label, no label.
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    scores = torch.tensor([[1.0, -2.0, 0.5]] * 3)
    value, gradient = slope(loss, scores, torch.full((3, 3), grade), mask)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if not any(loss is LOSSES[name] for name in POINTWISE):
        assert value == 0
        assert torch.all(gradient == 0)
        # Beside a list with an order they change nothing either.
        alone, gradient_alone = slope(loss, SCORES.float(), GRADES)
        together, gradient_together = slope(
            loss,
            torch.cat([scores, SCORES.float()]),
            torch.cat([torch.full((3, 3), grade), GRADES]),
            torch.cat([mask, torch.ones(1, 3, dtype=torch.bool)]),
        )
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(gradient_together[-1:], gradient_alone)


@every_loss
def test_a_batch_of_padding_has_a_loss_of_0(loss: Loss) -> None:
    # Anomaly detection refuses a NaN in the backward pass, even one that is replaced by 0 later.
    with torch.autograd.set_detect_anomaly(True):
        value, gradient = slope(loss, torch.full((2, 3), math.nan), GRADES.expand(2, -1), torch.zeros(2, 3).bool())
    assert value == 0
    assert torch.all(gradient == 0)


@every_loss
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_scores_leave_loss_and_gradient_finite(loss: Loss, size: float) -> None:
    rows = [[1, -1, 0, 0.5], [-1, 1, 0, -0.5], [1, 1, 1, 1], [0, 1, 1, -1]]
    grades = torch.tensor([[10, 0, 1, 2], [10, 0, 1, 2], [2, 1, 0, 0], [0, 1, 1, 2]])
    value, gradient = slope(loss, size * torch.tensor(rows), grades)
    assert value.isfinite()
    assert gradient.isfinite().all()


@order_losses
def test_a_pair_in_the_wrong_order_by_far_still_has_a_loss(loss: Loss) -> None:
    assert loss(torch.tensor([[0.0, 1e4]]), torch.tensor([[1, 0]])) > 0.1


@every_loss
def test_the_loss_is_computed_in_float32_or_more(loss: Loss) -> None:
    scores, grades = torch.tensor([[0.5, -1.25, 2.0, 0.75]]), torch.tensor([[1, 0, 2, 2]])
    value = loss(scores, grades)
    assert value.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(scores, grades), value)
        # These scores are exact in bfloat16 too.
        assert torch.equal(loss(scores.bfloat16(), grades), value)
    assert loss(scores.double(), grades).dtype == torch.float64
