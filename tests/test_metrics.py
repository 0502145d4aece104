"""Metrics against brute force in numpy, sets whose precision and recall are known, and sets that copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdisc.diffusion.gaussian import Gaussian
from cdisc.evaluation import metrics


def _inside_brute(members, points, k):
    """The share of `points` within the k-th-neighbour ball of some member, by definition and in float64."""
    members, points = np.asarray(members, np.float64), np.asarray(points, np.float64)
    hits = 0
    for point in points:
        for i, member in enumerate(members):
            others = sorted(np.linalg.norm(member - other) for j, other in enumerate(members) if j != i)
            if np.linalg.norm(member - point) <= others[k - 1]:
                hits += 1
                break
    return hits / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_match_brute_force(k):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(23, 4)).astype(np.float32)
    fake = (0.8 * rng.normal(size=(17, 4)) + 0.4).astype(np.float32)
    figures = metrics.precision_recall(jnp.asarray(real), jnp.asarray(fake), k=k)
    expected = (_inside_brute(real, fake, k), _inside_brute(fake, real, k))
    assert expected[0] != expected[1]
    np.testing.assert_allclose(figures, expected, rtol=1e-6)


def test_precision_is_of_samples_and_recall_is_of_real_pictures():
    # Real: two far clusters. Samples: one of the clusters, and a fifth of them nowhere.
    ring = jnp.stack([jnp.cos(jnp.arange(10.0)), jnp.sin(jnp.arange(10.0))], axis=-1)
    real = jnp.concatenate([ring, ring + 100.0])
    fake = jnp.concatenate([ring[:8] * 1.01, jnp.asarray([[500.0, 0.0], [0.0, 900.0]])])
    # The strays' own balls reach back over everything, so they would distort recall: leave them out of it first.
    assert metrics.precision_recall(real, fake[:8]).precision == 1.0
    assert metrics.precision_recall(real, fake[:8]).recall == 0.5
    assert metrics.precision_recall(real, fake).precision == pytest.approx(0.8)


def test_copies_of_one_picture_are_precise_but_recall_nothing():
    key_real, key_jitter = jax.random.split(jax.random.key(1))
    # Far from the origin, so that a float32 product of such features resolves neither the jitter nor the set.
    real = 100.0 + 0.05 * jax.random.normal(key_real, (100, 16))
    fake = real[:1] + 1e-4 * jax.random.normal(key_jitter, (50, 16))
    figures = metrics.precision_recall(real, fake)
    assert figures.precision == 1.0
    # The copied picture itself is at most what the copies can reach.
    assert figures.recall <= 0.01


def test_samples_of_the_same_distribution_have_high_precision_and_recall():
    real, fake = jax.random.normal(jax.random.key(2), (2, 200, 4))
    precision, recall = metrics.precision_recall(real, fake)
    assert precision > 0.85 and recall > 0.85


def test_recall_of_right_samples_is_recall_without_the_wrong_ones():
    # Catches: wrong samples as members, or as neighbours that shorten the radii of right ones.
    rng = np.random.default_rng(1)
    real = rng.normal(size=(31, 3)).astype(np.float32)
    fake = (0.5 * rng.normal(size=(14, 3))).astype(np.float32)
    right = np.arange(14) % 2 == 0
    found = metrics.right_recall(jnp.asarray(real), jnp.asarray(fake), jnp.asarray(right))
    expected = _inside_brute(fake[right], real, 3)
    assert float(found) == pytest.approx(expected)
    assert 0 < expected != _inside_brute(fake, real, 3)
    every = metrics.right_recall(jnp.asarray(real), jnp.asarray(fake), jnp.ones(14, bool))
    assert every == metrics.precision_recall(jnp.asarray(real), jnp.asarray(fake)).recall


def test_wrong_outliers_recall_everything_and_the_right_recall_leaves_them_out():
    real = jax.random.normal(jax.random.key(0), (50, 2))
    copies = real[:1] + 1e-3 * jax.random.normal(jax.random.key(1), (8, 2))
    outliers = 50.0 * jnp.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    fake, right = jnp.concatenate([copies, outliers]), jnp.arange(12) < 8
    assert metrics.precision_recall(real, fake).recall == 1.0
    assert metrics.right_recall(real, fake, right) <= 0.02


@pytest.mark.parametrize(("count", "positive"), [(0, False), (3, False), (4, True)])
def test_few_right_samples_recall_nothing(count, positive):
    # Catches: an infinite ball where k-th neighbours do not exist, which recalls all.
    points = jax.random.normal(jax.random.key(2), (10, 2))
    assert bool(metrics.right_recall(points, points, jnp.arange(10) < count) > 0) == positive


@pytest.mark.parametrize("k", [1, 3])
def test_density_and_coverage_match_brute_force(k):
    # Catches: balls around the samples, an average over the wrong axis, a density without its 1 / k.
    rng = np.random.default_rng(2)
    real, fake = rng.normal(size=(19, 3)), 0.7 * rng.normal(size=(11, 3))
    inside = np.zeros((19, 11), bool)
    for i in range(19):
        radius = sorted(np.linalg.norm(real[i] - real[j]) for j in range(19) if j != i)[k - 1]
        inside[i] = [np.linalg.norm(real[i] - sample) <= radius for sample in fake]
    expected = (inside.sum() / (k * 11), inside.any(axis=1).mean())
    found = metrics.density_coverage(jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32), k=k)
    assert 0 < expected[1] != expected[0] > 0
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="more than 3 real"):
        metrics.density_coverage(jnp.zeros((3, 2)), jnp.zeros((1, 2)), k=3)


def test_outliers_raise_recall_and_not_coverage():
    real = jax.random.normal(jax.random.key(3), (40, 2))
    copies = real[:1] + 1e-3 * jax.random.normal(jax.random.key(4), (8, 2))
    fake = jnp.concatenate([copies, 30.0 * jnp.asarray([[1.0, 1.0], [-1.0, -1.0]])])
    assert metrics.precision_recall(real, fake).recall > 0.8
    assert metrics.density_coverage(real, fake).coverage <= 0.1


def test_density_of_the_same_distribution_is_one():
    # By exchangeability a new point is inside a ball that reaches to the k-th of the N - 1 others with k / N.
    real, fake = jax.random.normal(jax.random.key(5), (2, 400, 3))
    assert float(metrics.density_coverage(real, fake, k=5).density) == pytest.approx(1.0, abs=0.1)


def test_vendi_score_of_sets_whose_spectra_are_known():
    # Catches: a kernel that is not divided by n, the sum of squares instead of the entropy, a squared bandwidth lost.
    assert float(metrics.vendi(jnp.ones((6, 4)), 1.0)) == pytest.approx(1.0, abs=1e-4)
    assert float(metrics.vendi(100.0 * jnp.eye(6), 1.0)) == pytest.approx(6.0, rel=1e-4)
    # Three copies of each of two far pictures are two.
    assert float(metrics.vendi(100.0 * jnp.repeat(jnp.eye(2), 3, axis=0), 1.0)) == pytest.approx(2.0, rel=1e-4)
    # Two pictures at distance d: eigenvalues (1 +- c) / 2 with c = exp(-d^2 / (2 h^2)).
    for d, h in ((1.0, 1.0), (1.0, 2.0), (3.0, 2.0)):
        p = (1 + np.exp(-(d**2) / (2 * h**2))) / 2
        expected = np.exp(-p * np.log(p) - (1 - p) * np.log(1 - p))
        assert float(metrics.vendi(jnp.asarray([[0.0], [d]]), h)) == pytest.approx(expected, rel=1e-5)


def test_median_distance_leaves_out_a_member_from_itself():
    # Distances 1, 3, 4; with the zeros of the diagonal the median would be 1.
    assert float(metrics.median_distance(jnp.asarray([[0.0], [1.0], [4.0]]))) == 3.0


def test_a_duplicate_counts_as_a_neighbour_and_the_member_itself_does_not():
    real = jnp.asarray([[0.0], [0.0], [5.0]])
    # k = 1: the twins' balls are the point 0, and the ball of 5 reaches to 0 and to 10.
    fake = jnp.asarray([[-0.1], [0.0], [10.0], [10.1]])
    assert metrics.precision_recall(real, fake, k=1).precision == 0.5


@pytest.mark.parametrize("sizes", [(3, 9), (9, 3)])
def test_too_few_members_for_k_neighbours_are_refused(sizes):
    real, fake = jnp.zeros((sizes[0], 2)), jnp.zeros((sizes[1], 2))
    with pytest.raises(ValueError, match="more than 3 " + ("real" if sizes[0] == 3 else "fake")):
        metrics.precision_recall(real, fake, k=3)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(real[:1], fake)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(real, fake[:1])


def test_f1_is_the_harmonic_mean_and_zero_at_zero():
    assert metrics.f1(0.5, 0.25) == pytest.approx(1 / 3)
    assert metrics.f1(0.0, 0.0) == 0.0


def test_kid_matches_brute_force():
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(7, 5)), rng.normal(size=(4, 5)) + 0.3

    def kernel(x, y):
        return (x @ y / 5 + 1) ** 3

    same_real = np.mean([kernel(real[i], real[j]) for i in range(7) for j in range(7) if i != j])
    same_fake = np.mean([kernel(fake[i], fake[j]) for i in range(4) for j in range(4) if i != j])
    across = np.mean([kernel(x, y) for x in real for y in fake])
    value = metrics.kid(jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32))
    assert value == pytest.approx(same_real + same_fake - 2 * across, rel=1e-6)


def test_kid_is_unbiased_on_small_sets():
    # The mean over many pairs of sets of 5 from one distribution is 0; with the diagonal it would be about 1.
    values = [metrics.kid(*pair) for pair in np.random.default_rng(4).normal(size=(4000, 2, 5, 3))]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error < 0.2


def test_accuracies_of_each_factor_and_of_all_together():
    seen = jnp.asarray([[1, 2, 3], [1, 2, 0], [1, 0, 0], [1, 2, 3]])
    wanted = jnp.asarray([1, 2, 3])
    np.testing.assert_allclose(metrics.attribute_accuracy(seen, wanted), [1.0, 0.75, 0.5])
    # 0.5, where the product of the factors' accuracies would be 0.375.
    assert metrics.joint_accuracy(seen, wanted) == 0.5
    np.testing.assert_array_equal(metrics.all_right(seen, wanted), [True, False, False, True])
    each = jnp.asarray([[1, 2, 3], [1, 2, 0], [0, 0, 0], [1, 2, 3]])
    assert metrics.joint_accuracy(seen, each) == 0.75


def test_distance_to_query_is_the_mean_of_the_rms_differences():
    query = jnp.full((2, 2, 3), 0.5)
    # Distances 0 and 1: their mean is 0.5, the RMS over everything would be 0.71.
    assert metrics.distance_to_query(jnp.stack([query, query - 1.0]), query) == pytest.approx(0.5)


def test_balanced_accuracy_counts_a_rare_value_as_much_as_a_common_one():
    # Nine of ten show no hat: "no" to all is right in 0.9 of the pictures and in one of the two values. The third value
    # does not occur. Catches: the plain accuracy, and a value without pictures that counts as missed.
    values = jnp.asarray([0] * 9 + [1])
    no = jnp.tile(jnp.asarray([1.0, 0.0, 0.0]), (10, 1))
    assert float(metrics.balanced_accuracy(no, values)) == pytest.approx(0.5)
    assert float(metrics.balanced_accuracy(jax.nn.one_hot(values, 3), values)) == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    # Catches: a mean over bins instead of pictures, signs that cancel between bins, a confidence of 1 in no bin.
    def logits(confidence, says):
        other = np.log1p(-confidence) if confidence < 1 else -np.inf
        return [np.log(confidence), other] if says == 0 else [other, np.log(confidence)]

    # Six pictures at 0.75, right in 4; two at 0.55, right in both; two at 1, right in one. All are of value 0.
    given = [logits(0.75, says) for says in (0, 0, 0, 0, 1, 1)] + [logits(0.55, 0)] * 2
    given += [logits(1.0, 0), logits(1.0, 1)]
    found = metrics.calibration_error(jnp.asarray(given, jnp.float32), jnp.zeros(10, jnp.int32))
    expected = (abs(4 - 6 * 0.75) + abs(2 - 2 * 0.55) + abs(1 - 2)) / 10
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "shift", "frechet", "kid", "precision_recall", "prdc"),
    [
        ((300, 200, 16), 0.3, 6.418115583457091, 0.37099840349019475, (0.91, 29 / 300), (0.945, 0.15, 1.965, 0.83)),
        ((40, 40, 64), 0.1, 48.2950826989625, 0.03152122584485051, (0.975, 0.05), (1.0, 0.1, 3.73, 1.0)),
        ((100, 60, 8), 0.2, 3.402924470282601, 0.39874334933453603, (0.95, 0.16), (59 / 60, 0.26, 1.8933333, 0.8)),
    ],
)
def test_figures_of_sets_agree_with_torch_fidelity_and_prdc(shape, shift, frechet, kid, precision_recall, prdc):
    # torch-fidelity 0.4.0 (k = 3; KID with one subset of all) and prdc 0.2 (k = 5), on these features in float64.
    # Catches: covariances over N, precision for recall, float32 sums, subsets of KID, k that counts the member itself.
    real_count, fake_count, size = shape
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(size, size)) / np.sqrt(size)
    real = rng.normal(size=(real_count, size)).astype(np.float32)
    fake = (rng.normal(size=(fake_count, size)) @ mixed * 0.8 + shift).astype(np.float32)
    assert metrics.frechet_distance(real, fake) == pytest.approx(frechet, rel=1e-6)
    equal = min(real_count, fake_count)
    assert metrics.kid(real[:equal], fake[:equal]) == pytest.approx(kid, rel=1e-6)
    sets = jnp.asarray(real), jnp.asarray(fake)
    np.testing.assert_allclose(metrics.precision_recall(*sets), precision_recall, rtol=1e-6)
    found = (*metrics.precision_recall(*sets, k=5), *metrics.density_coverage(*sets, k=5))
    np.testing.assert_allclose(found, prdc, rtol=1e-6)


def test_frechet_distance_of_gaussians_that_are_known():
    # Points whose covariances are diagonal and exact: sum (m1 - m2)^2 + (s1 - s2)^2, also with fewer points than axes.
    def corners(mean, deviations):
        signs = np.asarray([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(3) / 2
        return np.pad(mean + signs * deviations, ((0, 0), (0, 4)))

    first, second = corners([0.0, 1.0], [2.0, 0.5]), corners([3.0, 1.0], [1.0, 0.1])
    assert metrics.frechet_distance(first, second) == pytest.approx(9 + 1.0**2 + 0.4**2)
    assert metrics.frechet_distance(first, first) == pytest.approx(0.0, abs=1e-9)


def test_cosine_similarity_is_the_mean_over_pairs():
    # Catches: the cosine of the means, a length that counts.
    real, fake = [[2.0, 0.0], [0.0, 1.0]], [[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]
    assert metrics.cosine_similarity(real, fake) == pytest.approx((1 + 0 + 2 * np.sqrt(0.5) - 1 + 0) / 6)


@pytest.mark.parametrize("figure", [metrics.kid, metrics.frechet_distance, metrics.cosine_similarity])
def test_bad_features_are_refused_by_name_and_number(figure):
    good = np.ones((5, 2))
    bad = np.ones((4, 2))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 4 fake features are not finite, the first that of 2"):
        figure(good, bad)
    with pytest.raises(ValueError, match=r"needs at least \d real features, not 0"):
        figure(np.ones((0, 2)), good)


def test_the_nearest_picture_is_found_for_each_sample():
    pictures = jnp.stack([jnp.zeros((2, 2)), jnp.ones((2, 2))])
    samples = jnp.stack([jnp.full((2, 2), 0.25), jnp.ones((2, 2)), jnp.full((2, 2), 3.0)])
    np.testing.assert_allclose(metrics.nearest_distance(samples, pictures), [0.25, 0.0, 2.0])


def test_the_likelihood_is_the_densities_and_falls_away_from_the_pictures_own_mean_and_variance():
    # Catches: nats a picture for nats an entry, and a variance taken for a deviation.
    rng = np.random.default_rng(0)
    pictures = rng.normal(loc=0.3, scale=0.5, size=(4000, 2, 3)).astype(np.float32)
    shape = (2, 3)
    right = metrics.log_likelihood(Gaussian(jnp.full(shape, 0.3), jnp.full(shape, 0.25)), jnp.asarray(pictures))
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
    assert float(right) == pytest.approx(-entropy, abs=0.01)
    for mean, variance in ((0.3, 0.5), (0.3, 0.125), (0.5, 0.25)):
        density = Gaussian(jnp.full(shape, mean), jnp.full(shape, variance))
        assert float(metrics.log_likelihood(density, jnp.asarray(pictures))) < float(right) - 0.05
