from pathlib import Path

from dense_perception.data.road_world import RoadWorld
from dense_perception.data.segmentation import camvid
from dense_perception.errors import InputError, SettingError
from dense_perception.graphical.mrf import energy
from dense_perception.graphical.superpixels import majority_labels, neighbours
from dense_perception.labels import CITYSCAPES
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.networks.super_parsing import (
    combined_ranks,
    feature_distances,
    log_ratios,
    neighbour_distances,
    RETRIEVED,
    scene_distances,
    smoothing_costs,
    SuperParsing,
    UNSEEN,
)
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.tensors import images_to_tensor, preprocess
from dense_perception.weights.checkpoint import Card, load_weights, Preprocessing, save_weights
import numpy as np
import pytest
import torch

CAMVID = Path(__file__).parents[2].parent / 'shared' / 'data' / 'camvid'
FRAMES = [RoadWorld(seed).frame(0) for seed in (0, 1, 2)]
IMAGES = [frame.image[::3, ::3] for frame in FRAMES]
LABELS = [frame.labels[::3, ::3] for frame in FRAMES]
CLASSES = len(CITYSCAPES)
SETTINGS = {'smallest': 30, 'added': 0.01}


@pytest.fixture(scope='module')
def network():
    network = SuperParsing(CLASSES, 'compact', settings=SETTINGS)
    network.fit(IMAGES[:2], LABELS[:2], np.random.default_rng(0))
    return network


def another(network, *, settings=None, **arguments):
    """Build a network that knows the same, with other arguments."""
    merged = {**network.arguments['settings'], **(settings or {})}
    other = SuperParsing(**{**network.arguments, **arguments, 'settings': merged})
    other.load_state_dict(network.state_dict())
    return other


def tensor(image):
    return preprocess(images_to_tensor([image]), Preprocessing())


def test_ratio_of_a_class_that_is_near_and_of_one_that_is_not():
    totals = torch.tensor([100, 900])
    near = torch.tensor([[[5.0, 3.0]]])
    assert log_ratios(near, totals)[0, 0].item() == pytest.approx(2.602690, abs=1e-6)
    nobody = torch.zeros(1, 1, 2)
    assert log_ratios(nobody, totals)[0, 0].item() == pytest.approx(2.197225, abs=1e-6)


def test_ratios_of_all_features_are_added():
    totals = torch.tensor([100, 900])
    near = torch.tensor([[[5.0, 3.0]], [[0.0, 0.0]]])
    assert log_ratios(near, totals)[0, 0].item() == pytest.approx(2.602690 + 2.197225, abs=1e-5)


def test_a_class_that_training_lacks_is_never_the_likeliest():
    ratios = log_ratios(torch.zeros(20, 4, 3), torch.tensor([7, 0, 0]))
    assert (ratios.argmax(1) == 0).all()
    assert (ratios[:, 1:] == UNSEEN).all()


def test_rank_of_an_image_is_the_best_of_its_ranks():
    distances = torch.zeros(3, 100)
    for row, rank in enumerate((7, 2, 90)):
        others = [place for place in range(1, 101) if place != rank]
        distances[row] = torch.tensor([rank, *others]).float()
    assert combined_ranks(distances)[0] == 2


def test_scenes_are_compared_in_each_descriptor():
    scene = torch.zeros(5184)
    others = torch.zeros(2, 5184)
    others[0, 4199], others[0, 4200], others[1, 5183] = 3, 4, 5
    assert scene_distances(scene, others).tolist() == [[3, 0], [4, 0], [0, 5]]


def test_superpixels_are_compared_in_each_feature():
    own, others = torch.zeros(1, 1708), torch.zeros(2, 1708)
    others[0, 63], others[0, 64], others[0, 65], others[1, 1707] = 1, 3, 4, 2
    distances = torch.stack(list(feature_distances(own, others)))
    assert distances.shape == (20, 1, 2)
    assert distances[0, 0].tolist() == [1, 0]
    assert distances[1, 0].tolist() == [5, 0]
    assert distances[19, 0].tolist() == [0, 2]


def test_near_is_the_median_distance_to_the_twentieth_neighbour():
    descriptors = torch.zeros(61, 1708)
    descriptors[:, 66] = torch.arange(61.0)  # the area: points on a line
    distances = neighbour_distances(descriptors)
    # In the middle, ten neighbours on either side; towards the ends, they lie farther off.
    expected = [sorted(abs(a - b) for b in range(61))[20] for a in range(61)]
    assert distances[2] == np.median(expected)
    assert distances[3] == 0


def test_cost_of_two_classes_is_how_rarely_they_meet():
    adjacent = np.array([[6.0, 2, 0], [2, 2, 4], [0, 4, 0]])
    costs = smoothing_costs(adjacent)
    # P(0 | 1) = 2 / 8, P(1 | 0) = 2 / 8; P(1 | 2) = 4 / 4, P(2 | 1) = 4 / 8.
    assert costs[0, 1] == pytest.approx(-np.log(0.25))
    assert costs[1, 2] == pytest.approx(-np.log(0.75))
    assert costs[0, 2] > 9  # never met: dear, but possible
    assert np.array_equal(costs, costs.T)
    assert not costs.diagonal().any()


def test_published_size_of_the_retrieval_set_is_200():
    assert SuperParsing(3).retrieved == RETRIEVED['full'] == 200
    assert RETRIEVED['compact'] == 50


def test_nothing_is_trained(network):
    assert not list(network.parameters())


def test_before_it_knows_images_all_scores_are_equal():
    scores = SuperParsing(5, 'compact')(tensor(IMAGES[0]))
    assert scores.shape == (1, 5, *IMAGES[0].shape[:2])
    assert not scores.any()


def test_fit_counts_labelled_superpixels_and_who_lies_beside_whom(network):
    adjacent = np.zeros((CLASSES, CLASSES), int)
    truth = []
    for image, labels in zip(IMAGES[:2], LABELS[:2], strict=True):
        superpixels = network.superpixels(image)
        found, share = majority_labels(superpixels, labels, CLASSES)
        found[share < 0.5] = -1
        truth += found[found >= 0].tolist()
        for one, other in neighbours(superpixels)[0]:
            if found[one] >= 0 and found[other] >= 0:
                adjacent[found[one], found[other]] += 1
                adjacent[found[other], found[one]] += 1
    assert network.truth.tolist() == truth
    assert np.array_equal(network.adjacent.numpy(), adjacent)
    assert network.arguments['superpixels'] == len(truth)
    assert network.scene_of.max() == 1


def test_neighbours_are_counted_by_class_within_the_distance_of_each_feature(network):
    superpixels = network.superpixels(IMAGES[0])
    counts = network.nearby(IMAGES[0], superpixels)
    assert counts.shape == (20, superpixels.max() + 1, CLASSES)
    # Every superpixel with a label is known already: it finds at least itself.
    found, share = majority_labels(superpixels, LABELS[0], CLASSES)
    known = share >= 0.5
    own = counts[:, known, found[known]]
    assert (own >= 1).all()


def test_only_superpixels_of_the_most_similar_scenes_are_compared(network):
    network = another(network)
    network.retrieved = 1
    superpixels = network.superpixels(IMAGES[1])
    network.thresholds.fill_(1e6)  # now all count that are looked at
    counts = network.nearby(IMAGES[1], superpixels)
    expected = torch.bincount(network.truth[network.scene_of == 1], minlength=CLASSES)
    assert torch.equal(counts[0, 0], expected.float())


def test_without_smoothing_the_likeliest_class_wins(network):
    plain = another(network, settings={'smoothing': 0.0})
    superpixels = plain.superpixels(IMAGES[2])
    scores = plain.superpixel_scores(IMAGES[2], superpixels)
    totals = torch.bincount(plain.truth, minlength=CLASSES)
    ratios = log_ratios(plain.nearby(IMAGES[2], superpixels), totals, SETTINGS['added'])
    assert torch.equal(scores, ratios)


def test_the_best_score_is_what_the_field_chooses(network):
    smooth = another(network, settings={'smoothing': 0.5})
    superpixels = smooth.superpixels(IMAGES[2])
    nearby = smooth.nearby(IMAGES[2], superpixels)
    chosen = smooth.field(nearby, superpixels)
    likeliest, unary, pairwise = smooth._costs(
        nearby, torch.eye(CLASSES), np.bincount(superpixels.ravel())
    )
    assert (chosen != likeliest).any()
    edges, _ = neighbours(superpixels)
    assert energy(chosen, unary, edges, pairwise) < energy(likeliest, unary, edges, pairwise)
    scores = smooth(tensor(IMAGES[2]))[0]
    assert np.array_equal(scores.argmax(0).numpy(), chosen[superpixels])


def test_large_superpixels_weigh_more_and_the_ratio_goes_through_a_logistic_function(network):
    nearby = torch.zeros(20, 2, CLASSES)
    nearby[:, :, 0] = 1
    likeliest, unary, _ = network._costs(nearby, torch.eye(CLASSES), np.array([10, 30]))
    totals = torch.bincount(network.truth, minlength=CLASSES)
    ratio = log_ratios(nearby, totals, SETTINGS['added'])[0, 0].item()
    slope = network.settings.slope
    assert unary[:, 0] == pytest.approx(np.array([-0.5, -1.5]) / (1 + np.exp(-slope * ratio)))


def test_geometric_classes_are_found_together_with_the_semantic_ones(network):
    # Road and sidewalk lie, sky is far, all others stand.
    geometry = [0, 0, *([1] * 8), 2, *([1] * 8)]
    joint = another(
        network, geometry=geometry, settings={'compatibility': 100.0, 'smoothing': 0.0}
    )
    superpixels = joint.superpixels(IMAGES[2])
    nearby = joint.nearby(IMAGES[2], superpixels)
    table = torch.nn.functional.one_hot(torch.tensor(geometry)).float()
    sizes = np.bincount(superpixels.ravel())
    _, semantic, _ = joint._costs(nearby, torch.eye(CLASSES), sizes)
    _, geometric, _ = joint._costs(nearby, table, sizes)
    # So dear that only pairs that agree are left.
    expected = (semantic + geometric[:, geometry]).argmin(1)
    assert np.array_equal(joint.field(nearby, superpixels), expected)


def test_geometry_names_every_class():
    with pytest.raises(ValueError, match='geometry names 2 classes; there are 3'):
        SuperParsing(3, geometry=[0, 1])


def test_a_saved_network_labels_alike(network, tmp_path):
    card = Card('super_parsing', network.arguments, Preprocessing(), 'cityscapes')
    save_weights(tmp_path / 'weights.safetensors', network, card)
    loaded, _ = load_weights(tmp_path / 'weights.safetensors')
    image = tensor(IMAGES[2])
    assert torch.equal(loaded(image), network(image))


def test_segmenter_takes_it_in_half_precision_too(network):
    network = another(network)
    card = Card('super_parsing', network.arguments, Preprocessing(), 'cityscapes')
    exact = network(tensor(IMAGES[2]))[0].argmax(0).numpy()
    for precision in ('float32', 'bfloat16'):
        segmenter = Segmenter(network, card, choose_placement('cpu', precision))
        labels = segmenter.segment(IMAGES[2], confidence=True).labels
        assert labels.shape == IMAGES[2].shape[:2]
        if precision == 'float32':
            assert np.array_equal(labels, exact)
    assert network.words.dtype == torch.float32
    assert network.descriptors.dtype == torch.float16


def test_colours_are_found_again_whatever_the_preprocessing(network):
    preprocessing = Preprocessing('bgr', (104.0, 117.0, 123.0), 1.0)
    colors = {'order': 'bgr', 'mean': (104.0, 117.0, 123.0), 'scale': 1.0}
    other = another(network, colors=colors)
    image = preprocess(images_to_tensor([IMAGES[2]]), preprocessing)
    assert torch.equal(other(image), network(tensor(IMAGES[2])))


@pytest.mark.parametrize(
    ('images', 'labels', 'message'),
    [
        ([], [], '0 images and 0 labels; one each is needed'),
        (IMAGES[:2], LABELS[:1], '2 images and 1 labels; one each is needed'),
        (IMAGES[:1], [np.full_like(LABELS[0], 255)], 'no superpixel has a label'),
    ],
)
def test_what_cannot_be_learnt_is_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        SuperParsing(CLASSES).fit(images, labels, np.random.default_rng(0))


def test_unknown_settings_are_refused():
    with pytest.raises(SettingError, match='unknown lambda'):
        SuperParsing(3, settings={'lambda': 1})


@pytest.mark.slow
def test_it_knows_four_images_again():
    frames = [camvid(CAMVID, 'train')[index] for index in (100, 150, 200, 300)]
    # Superpixels of the paper's size cross borders of objects: 0.93 is the most they allow here.
    settings = {'segment_scale': 50.0, 'smallest': 20, 'added': 1e-4, 'smoothing': 0.0}
    network = SuperParsing(11, 'compact', settings=settings)
    random = np.random.default_rng(0)
    network.fit([frame.image for frame in frames], [frame.labels for frame in frames], random)
    found = ConfusionMatrix(11)
    for frame in frames:
        labels = network(tensor(frame.image)).argmax(1)[0].to(torch.uint8).numpy()
        found.add(labels, frame.labels)
    assert found.pixel_accuracy >= 0.95
