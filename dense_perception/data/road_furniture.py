"""Pictures of poles, lamps, traffic lights and signs in the road world; sizes are in metres."""

from functools import cache

from dense_perception.data.road_textures import shaded, Sheet, Texture
import numpy as np


@cache
def pole(variant: int) -> Texture:
    """Plain round post, to be stretched."""
    tone = ((104, 108, 108), (78, 84, 80), (140, 142, 142), (110, 92, 72))[variant % 4]
    shade = np.array((0.75, 1.0, 1.2, 1.05, 0.8, 0.6), np.float32)[None, :, None]
    color = np.asarray(tone, np.float32) * shade * np.ones((64, 1, 1), np.float32)
    picture = np.full((64, 6, 4), 255, np.uint8)
    picture[..., :3] = np.clip(color, 0, 255)
    return Texture(picture, 'pole')


@cache
def lamp(variant: int) -> Texture:
    """Street lamp with arm to the right, 2 m wide and 8 m high."""
    tone = ((104, 108, 108), (70, 78, 74), (146, 148, 148))[variant % 3]
    sheet = Sheet(2.0, 8.0, 24)
    sheet.box(0.06, 0, 0.22, 1.2, shaded(tone, 0.9))
    sheet.box(0.09, 1.0, 0.15, 6.6, tone)
    sheet.box(0.19, 1.0, 0.05, 6.6, shaded(tone, 0.7))
    sheet.line(((0.16, 7.5), (0.4, 7.75), (1.4, 7.85)), 0.1, tone)
    sheet.polygon(((1.25, 7.75), (1.3, 7.95), (1.95, 7.9), (1.95, 7.78)), shaded(tone, 0.8))
    return sheet.texture('pole')


@cache
def traffic_light(variant: int) -> Texture:
    """Three-lamp signal head, 0.44 m wide and 1.1 m high; variant 3 is seen from behind."""
    sheet = Sheet(0.44, 1.1, 64)
    sheet.box(0.02, 0.02, 0.4, 1.06, (28, 30, 30))
    lit = variant % 3
    if variant < 3:
        colors = ((226, 40, 32), (240, 170, 30), (40, 214, 130))
        for index, color in enumerate(colors):
            y = 0.9 - 0.35 * index
            sheet.oval(0.22, y, 0.15, 0.15, (16, 16, 16))
            sheet.oval(0.22, y - 0.01, 0.12, 0.12, color if index == lit else shaded(color, 0.2))
    else:
        sheet.box(0.08, 0.1, 0.28, 0.9, (44, 46, 46))
    return sheet.texture('traffic light')


SIGNS = 9  # distinct traffic signs


@cache
def sign(variant: int) -> Texture:
    """Traffic sign plate, 0.8 m square; the last variant is the back of a plate."""
    sheet = Sheet(0.8, 0.8, 56)
    red, blue, white, black = (186, 28, 32), (22, 72, 148), (232, 232, 228), (24, 24, 26)
    triangle = np.array(((0.02, 0.06), (0.4, 0.74), (0.78, 0.06)))
    if variant == 0:  # speed limit
        sheet.oval(0.4, 0.4, 0.38, 0.38, red)
        sheet.oval(0.4, 0.4, 0.28, 0.28, white)
        sheet.ring(0.3, 0.33, 0.08, 0.05, black)
        sheet.line(((0.24, 0.52), (0.37, 0.52), (0.3, 0.42)), 0.05, black)
        sheet.ring(0.51, 0.41, 0.09, 0.05, black)
    elif variant == 1:  # no entry
        sheet.oval(0.4, 0.4, 0.38, 0.38, red)
        sheet.box(0.14, 0.32, 0.52, 0.16, white)
    elif variant in (2, 3):  # warning, give way
        corners = triangle if variant == 2 else triangle * (1, -1) + (0, 0.8)
        sheet.polygon(corners, red)
        sheet.polygon(0.6 * (corners - corners.mean(0)) + corners.mean(0), white)
        if variant == 2:
            sheet.box(0.37, 0.2, 0.06, 0.2, black)
    elif variant == 4:  # priority road
        sheet.polygon(((0.4, 0.02), (0.78, 0.4), (0.4, 0.78), (0.02, 0.4)), white)
        sheet.polygon(((0.4, 0.12), (0.68, 0.4), (0.4, 0.68), (0.12, 0.4)), (232, 186, 30))
    elif variant == 5:  # pass on this side
        sheet.oval(0.4, 0.4, 0.38, 0.38, blue)
        sheet.line(((0.54, 0.56), (0.28, 0.28)), 0.07, white)
        sheet.line(((0.26, 0.46), (0.26, 0.26), (0.46, 0.26)), 0.07, white)
    elif variant == 6:  # parking
        sheet.box(0.02, 0.02, 0.76, 0.76, white)
        sheet.box(0.05, 0.05, 0.7, 0.7, blue)
        bow = ((0.3, 0.64), (0.48, 0.62), (0.54, 0.5), (0.48, 0.4), (0.32, 0.38))
        sheet.line(((0.3, 0.16), *bow), 0.08, white)
    elif variant == 7:  # pedestrian crossing
        sheet.box(0.02, 0.02, 0.76, 0.76, blue)
        sheet.polygon(((0.4, 0.68), (0.68, 0.16), (0.12, 0.16)), white)
        sheet.line(((0.4, 0.5), (0.38, 0.36), (0.3, 0.2)), 0.05, black)
        sheet.line(((0.38, 0.36), (0.48, 0.2)), 0.05, black)
    else:
        sheet.oval(0.4, 0.4, 0.38, 0.38, (128, 130, 130))
        sheet.box(0.36, 0.05, 0.08, 0.7, (104, 106, 106))
    return sheet.texture('traffic sign')
