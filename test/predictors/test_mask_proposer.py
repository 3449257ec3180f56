from dataclasses import replace

from dense_perception.errors import InputError, WeightsError
from dense_perception.networks.masks import DeepMask, Windows
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.mask_proposer import (
    distinct,
    MaskProposer,
    Proposals,
    ProposalSettings,
    SCALES,
)
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
import numpy as np
import pytest
import torch

CPU = choose_placement('cpu', 'float32')
PLAIN = Card('deep_mask', {'width': 'compact'}, Preprocessing('rgb', (127.5,) * 3, 127.5))


def picture(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rough(overlap=1 / 3, **changes):
    return ProposalSettings(overlap=overlap, **changes)


class BrightSquares(DeepMask):
    """
    A network by hand: the mask is what is bright in the window.

    The score is how near the middle of what is bright is to that of the window, and its side to
    `LENGTH` pixels.
    """

    LENGTH = 96

    def slide(self, image):
        cut = image[0].mean(0).unfold(0, 160, 16).unfold(1, 160, 16)  # (R, C, 160, 160)
        bright = (cut > 0.5).float()
        places = torch.arange(160.0) - 79.5
        area = bright.sum((2, 3)).clamp_min(1)
        across = (bright.sum(2) * places).sum(2) / area
        down = (bright.sum(3) * places).sum(2) / area
        size = (area.sqrt() / self.LENGTH).log2()
        scores = 5 - (across / 8) ** 2 - (down / 8) ** 2 - 20 * size**2
        scores = scores.masked_fill(bright.sum((2, 3)) == 0, -50)
        descriptions = (bright * 20 - 10).flatten(2).permute(2, 0, 1)[None]
        return Windows(descriptions, scores, [])

    def masks(self, descriptions, skips):
        return descriptions.reshape(-1, 160, 160)


def squares(**changes):
    return MaskProposer(BrightSquares('compact'), PLAIN, CPU, **changes)


def test_seven_scales_are_those_of_the_release():
    np.testing.assert_allclose(np.log2(SCALES), [-2.5, -2, -1.5, -1, -0.5, 0, 0.5])


@pytest.mark.parametrize(
    ('left', 'top', 'side'), [(100, 60, 96), (150, 90, 48 * 2), (40, 20, 192), (10, 8, 136)]
)
def test_mask_lies_on_the_object_at_its_size(left, top, side):
    image = np.zeros((240, 320, 3), np.uint8)
    image[top : top + side, left : left + side] = 255
    proposals = squares(settings=rough()).propose(image)
    expected = image[..., 0] > 0
    best = proposals.masks[0]
    assert (best & expected).sum() / (best | expected).sum() > 0.85
    assert (np.diff(proposals.scores) <= 0).all()
    assert proposals.scores[0] > 0.9


def test_two_objects_of_two_sizes_are_the_two_best_proposals():
    image = np.zeros((300, 420, 3), np.uint8)
    image[40:136, 30:126] = 255
    image[90:282, 200:392] = 255
    proposals = squares(settings=rough()).propose(image)
    for part in (image[:, :160, 0] > 0, image[:, 160:, 0] > 0):
        assert part.any()
    found = [mask[:, :160].any() for mask in proposals.masks[:2]]
    assert sorted(found) == [False, True]


def test_object_cut_by_the_border_has_a_mask_up_to_it():
    image = np.zeros((200, 200, 3), np.uint8)
    image[60:156, :60] = 255
    best = squares(settings=rough()).propose(image).masks[0]
    assert best[70:145, 2].all()
    assert not best[:40].any()


@pytest.mark.parametrize('network', ['deep_mask', 'sharp_mask'])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('size', [(1, 1), (20, 130), (75, 64)])
def test_masks_have_the_size_of_the_image_and_falling_scores(network, precision, size):
    torch.manual_seed(0)
    card = replace(PLAIN, network=network)
    settings = ProposalSettings(candidates=20, count=5, threshold=0.0)
    proposer = MaskProposer(
        card.build(), card, choose_placement('cpu', precision), width=64, settings=settings
    )
    proposals = proposer.propose(picture(*size))
    count = len(proposals.scores)
    assert 1 <= count <= 5
    assert proposals.masks.shape == (count, *size)
    assert proposals.masks.dtype == bool
    assert proposals.scores.dtype == np.float32
    assert (np.diff(proposals.scores) <= 0).all()
    assert ((proposals.scores > 0) & (proposals.scores < 1)).all()


def test_image_without_any_mask_has_no_proposals():
    proposals = squares().propose(np.zeros((60, 80, 3), np.uint8))
    assert proposals.masks.shape == (0, 60, 80)
    assert proposals.scores.shape == (0,)
    assert (proposals.ranks() == 0).all()


def test_near_copies_of_a_better_mask_are_left_out():
    masks = torch.zeros(5, 10, 10, dtype=torch.bool)
    masks[0, :5] = True
    masks[1, :6] = True  # 50 / 60 of the first
    masks[2, 5:] = True
    masks[3, :3] = True  # 30 / 50 of the first
    masks[4, 6:] = True  # 40 / 50 of the third
    assert distinct(masks, 0.7) == [0, 2, 3]
    assert distinct(masks, 0.5) == [0, 2]
    assert distinct(masks, 1.0) == [0, 1, 2, 3, 4]


def test_a_mask_is_compared_with_those_that_stay_alone():
    masks = torch.zeros(3, 1, 12, dtype=torch.bool)
    masks[0, 0, :6] = True
    masks[1, 0, 2:8] = True  # half of both others
    masks[2, 0, 4:10] = True
    assert distinct(masks, 0.45) == [0, 2]


def test_rank_of_a_pixel_is_that_of_the_best_proposal_on_it():
    masks = np.zeros((3, 2, 3), bool)
    masks[0, 0, 0] = True
    masks[1, 0] = True
    masks[2, :, 2] = True
    ranks = Proposals(masks, np.float32([0.9, 0.5, 0.1])).ranks()
    assert ranks.tolist() == [[1, 2, 2], [0, 0, 3]]


def test_ranks_beyond_254_are_not_shown():
    masks = np.zeros((300, 1, 300), bool)
    masks[np.arange(300), 0, np.arange(300)] = True
    ranks = Proposals(masks, np.linspace(1, 0, 300, dtype=np.float32)).ranks()
    assert ranks[0, 253:256].tolist() == [254, 0, 0]


def test_image_of_another_form_is_refused():
    with pytest.raises(InputError, match=r'\(H, W, 3\) uint8 is needed'):
        squares().propose(np.zeros((8, 8), np.uint8))


def test_proposer_is_made_from_a_weights_file(tmp_path):
    torch.manual_seed(0)
    network = PLAIN.build()
    save_weights(tmp_path / 'a.safetensors', network, PLAIN, torch.float32)
    loaded = MaskProposer.from_file(
        tmp_path / 'a.safetensors', device='cpu', precision='float32', width=64
    )
    expected = MaskProposer(network, PLAIN, CPU, width=64).propose(picture(48, 64))
    np.testing.assert_array_equal(loaded.propose(picture(48, 64)).scores, expected.scores)


def test_other_weights_are_no_network_for_proposals(tmp_path):
    card = Card('flownet_simple', {'width': 0.125}, Preprocessing())
    save_weights(tmp_path / 'a.safetensors', card.build(), card)
    with pytest.raises(WeightsError, match='flownet_simple is no network for mask proposals'):
        MaskProposer.from_file(tmp_path / 'a.safetensors', device='cpu')
