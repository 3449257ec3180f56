"""
How images are prepared for each published file, against values that are typed here once more.

The sections are those of the networks' specification; where its authors' code is more exact, that
is named.
"""

from dense_perception.weights.sources import SOURCES
import pytest

# Of each file: channel order, mean of 0 to 255 in that order, scale in grey levels, rows and
# columns of the tile, and how scores become pixels.
PREPARED = {
    # Section 7: BGR minus the mean of the training data, no scaling; tiles with margins of 186
    # pixels. `zoom` of 8 interpolates probabilities, 1 means that a layer enlarges the scores.
    'dilation8_pascal_voc': ('bgr', (102.93, 111.36, 116.52), 1, (900, 900), 'zoom'),
    'dilation8_camvid': (
        'bgr', (110.70313206, 108.77808759, 105.41212523), 1, (900, 1100), 'zoom',
    ),
    'dilation7_kitti': ('bgr', (96.19429688, 95.55136972, 91.34692262), 1, (852, 1640), 'zoom'),
    'dilation10_cityscapes': ('bgr', (72.39, 82.91, 73.16), 1, (1396, 1396), 'half_pixel'),
    # Section 4: BGR minus the mean, native size. The network enlarges its scores itself.
    **dict.fromkeys(
        ('fcn32s_pascal', 'fcn16s_pascal', 'fcn8s_pascal', 'fcn8s_atonce_pascal', 'fcn_8s_pascal'),
        ('bgr', (104.00699, 116.66877, 122.67892), 1, None, 'half_pixel'),
    ),
    # Section 6 has the mean of training, 104.008, 116.669, 122.675; this one is that of inference,
    # inference/util/preprocess_image_bb.m.
    'deconvnet_pascal': (
        'bgr', (104.00698793, 116.66876762, 122.67891434), 1, None, 'half_pixel',
    ),
    # Section 10.
    'crfrnn_pascal': ('bgr', (103.939, 116.779, 123.68), 1, None, 'half_pixel'),
    'crfasrnn_pytorch': ('bgr', (103.939, 116.779, 123.68), 1, None, 'half_pixel'),
    # Section 12, table of checkpoints: of grey levels divided by 255. The later image has a mean
    # of its own in the Caffe files, see LATER; both have their own in those of FlowNet2.
    **dict.fromkeys(
        ('flownet_s_caffe', 'flownet_c_caffe'),
        ('bgr', (0.411451 * 255, 0.432060 * 255, 0.450141 * 255), 255, None, 'half_pixel'),
    ),
    **dict.fromkeys(
        ('flownets_epe1.951', 'flownetc_epe1.766', 'flownets_bn_epe2.459', 'flownetc_bn'),
        ('rgb', (0.45 * 255, 0.432 * 255, 0.411 * 255), 255, None, 'half_pixel'),
    ),
    'flownets_from_caffe': (
        'bgr', (0.411 * 255, 0.432 * 255, 0.45 * 255), 255, None, 'half_pixel',
    ),
    **dict.fromkeys(
        ('flownet2_s', 'flownet2_c'), ('rgb', 'of the images', 255, None, 'half_pixel')
    ),
    # Section 14: the importer moves torchvision's scale into the weights, and keeps its mean.
    'vgg16_imagenet': ('bgr', (0.406 * 255, 0.456 * 255, 0.485 * 255), 1, None, 'half_pixel'),
    'vgg16_features': (
        'bgr', (0.40784 * 255, 0.45882 * 255, 0.48235 * 255), 1, None, 'half_pixel',
    ),
}  # fmt: skip

# Mean of the later image; section 12.
LATER = dict.fromkeys(
    ('flownet_s_caffe', 'flownet_c_caffe'), (0.410602 * 255, 0.431021 * 255, 0.448553 * 255)
)

# Caffe multiplies by 0.0039216 where others divide by 255, which differs by 8 in a million.
NEARLY = {'rel': 1e-5, 'abs': 0}


def test_every_published_file_is_held_against_its_specification():
    assert set(PREPARED) == set(SOURCES)


@pytest.mark.parametrize('name', PREPARED)
def test_images_are_prepared_as_the_published_code_does(name):
    order, mean, scale, tile, upsampling = PREPARED[name]
    card = SOURCES[name].card({})  # at the published width
    preprocessing = card.preprocessing
    assert preprocessing.order == order
    assert preprocessing.scale == pytest.approx(scale, **NEARLY)
    assert preprocessing.own_mean == (mean == 'of the images')
    if not preprocessing.own_mean:
        assert preprocessing.mean == pytest.approx(mean, **NEARLY)
    if name in LATER:
        assert preprocessing.second_mean == pytest.approx(LATER[name], **NEARLY)
    else:
        assert preprocessing.second_mean is None
    assert card.tile == tile
    assert card.upsampling == upsampling
