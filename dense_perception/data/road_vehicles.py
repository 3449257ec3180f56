"""Pictures of the road world's vehicles, by their sides; sizes are in metres."""

from functools import cache, lru_cache

from dense_perception.data.road_textures import generator, shaded, Sheet, Texture
import numpy as np

CAR_COLORS = (
    (38, 40, 44),
    (20, 21, 24),
    (150, 154, 158),
    (196, 198, 200),
    (226, 226, 224),
    (96, 100, 106),
    (28, 44, 92),
    (120, 22, 26),
    (54, 84, 120),
    (30, 62, 46),
    (168, 158, 136),
    (170, 40, 34),
)
GLASS = (30, 36, 42)
TYRE = (22, 22, 24)

# Side outline of each car body, rear to front: (x, z) in metres along the upper edge.
CAR_BODIES: dict[str, tuple[tuple[float, float], ...]] = {
    'hatchback': ((0, 0.9), (0.1, 1.0), (0.45, 1.42), (1.5, 1.5), (2.3, 1.44), (3.05, 1.0),
                  (3.8, 0.84), (3.95, 0.62)),
    'saloon': ((0, 0.86), (0.1, 0.98), (0.75, 1.02), (1.3, 1.38), (2.0, 1.44), (2.6, 1.4),
               (3.4, 0.98), (4.35, 0.8), (4.5, 0.6)),
    'estate': ((0, 0.9), (0.08, 1.0), (0.4, 1.42), (1.6, 1.5), (2.7, 1.44), (3.5, 1.0),
               (4.4, 0.82), (4.55, 0.62)),
    'suv': ((0, 1.0), (0.06, 1.12), (0.35, 1.62), (1.6, 1.72), (2.6, 1.66), (3.3, 1.18),
            (4.3, 1.02), (4.45, 0.76)),
    'van': ((0, 1.1), (0.03, 1.2), (0.12, 1.88), (1.8, 1.98), (3.3, 1.92), (4.2, 1.22),
            (4.85, 1.0), (4.95, 0.7)),
}  # fmt: skip
CAR_WIDTH = 1.78
CAR_INSET = 0.14  # how much farther in each side of the roof lies
CAR_BELTS = {'hatchback': 0.98, 'saloon': 0.97, 'estate': 0.98, 'suv': 1.15, 'van': 1.2}


def car_sides(body: str, color: int) -> tuple[Texture, Texture]:
    """Return the side of a car above and below the sill of its windows, front to the right."""
    picture = car_side(body, color).picture
    top = max(z for _, z in CAR_BODIES[body])
    cut = round(picture.shape[0] * (1 - CAR_BELTS[body] / top))
    upper, lower = picture[:cut], picture[cut:]
    return Texture(upper, 'car', overlap=True), Texture(lower, 'car', overlap=True)


@lru_cache(maxsize=256)
def car_side(body: str, color: int) -> Texture:
    """Side of a car, front to the right; as long and high as its body."""
    outline = CAR_BODIES[body]
    length, top = outline[-1][0], max(z for _, z in outline)
    paint = CAR_COLORS[color]
    sheet = Sheet(length, top, 40)
    lower = ((length - 0.02, 0.3), (length - 0.3, 0.22), (0.25, 0.22), (0, 0.35))
    sheet.polygon((*outline, *lower), shaded(paint, 0.95))
    belt = CAR_BELTS[body]
    sheet.polygon(((0, belt), (length, belt - 0.12), (length, belt - 0.2), (0, belt - 0.08)),
                  shaded(paint, 1.18))  # fmt: skip
    sheet.box(0.2, 0.2, length - 0.4, 0.16, shaded(paint, 0.5))
    roof = [(x, z) for x, z in outline if z > belt + 0.15]
    rear, front = roof[0], roof[-1]
    slope = 0.75 * (front[1] - belt)
    glass = (
        (rear[0] - 0.2, belt + 0.02),
        *((x + 0.06 * (1 if x < 2 else -1), z - 0.1) for x, z in roof),
        (front[0] + slope, belt + 0.02),
    )
    if body == 'van':
        glass = ((2.5, belt + 0.05), (2.5, 1.8), (3.25, 1.8), (3.9, belt + 0.05))
    sheet.polygon(glass, GLASS)
    bright = [(x, belt + 0.03 + 0.45 * (z - belt)) for x, z in glass[1:-1]]
    sheet.polygon(((glass[0][0] + 0.05, belt + 0.03), *bright, (glass[-1][0] - 0.1, belt + 0.03)),
                  (58, 66, 74))  # fmt: skip
    middle = 0.5 * (rear[0] + front[0]) + 0.1
    for x in (middle,) if body == 'van' else (middle, rear[0] + 0.25):
        sheet.box(x, belt, 0.07, top - belt - 0.06, shaded(paint, 0.8))
    for x in (middle, front[0] + 0.35):
        sheet.line(((x, belt), (x, 0.35)), 0.015, shaded(paint, 0.55))
    sheet.box(middle + 0.12, belt - 0.14, 0.16, 0.035, shaded(paint, 0.5))
    sheet.box(0, belt - 0.2, 0.14, 0.17, (150, 24, 20))
    sheet.box(length - 0.3, 0.64, 0.26, 0.12, (196, 198, 200))
    for x in (0.78, length - 0.82):
        _draw_wheel(sheet, x)
    return sheet.texture('car')


def _draw_wheel(sheet: Sheet, x: float) -> None:
    """Draw wheel house, tyre and rim of a car."""
    sheet.oval(x, 0.34, 0.38, 0.38, (14, 14, 15))
    sheet.oval(x, 0.31, 0.31, 0.31, TYRE)
    sheet.oval(x, 0.31, 0.2, 0.2, (128, 130, 134))
    sheet.oval(x, 0.31, 0.07, 0.07, (60, 62, 66))
    for turn in np.deg2rad(range(0, 360, 72)):
        tip = (x + 0.19 * np.cos(turn), 0.31 + 0.19 * np.sin(turn))
        sheet.line(((x, 0.31), tip), 0.02, (70, 72, 76))


@lru_cache(maxsize=256)
def car_end(body: str, color: int, rear: bool) -> Texture:
    """Front or rear face of a car without tyres, up to the edge of its hood or boot."""
    outline = CAR_BODIES[body]
    top = outline[0][1] if rear else outline[-1][1]
    paint, width = CAR_COLORS[color], CAR_WIDTH
    sheet = Sheet(width, top, 48)
    sheet.box(0.06, 0.2, width - 0.12, 0.2, (30, 30, 32))
    sheet.box(0, 0.28, width, top - 0.28, shaded(paint, 0.9))
    sheet.box(0, 0.28, width, 0.14, shaded(paint, 0.62))
    if rear:
        sheet.box(0.02, top - 0.3, 0.3, 0.24, (150, 18, 16))
        sheet.box(width - 0.32, top - 0.3, 0.3, 0.24, (150, 18, 16))
        sheet.box(0.06, top - 0.16, 0.2, 0.06, (214, 120, 60))
        sheet.box(width - 0.26, top - 0.16, 0.2, 0.06, (214, 120, 60))
        sheet.box(0.34, top - 0.04, width - 0.68, 0.03, shaded(paint, 1.2))
        sheet.box(0.63, 0.46, 0.52, 0.12, (218, 200, 90) if color % 3 == 0 else (226, 226, 222))
    else:
        sheet.box(0.36, top - 0.2, width - 0.72, 0.14, (24, 25, 27))
        sheet.box(0.34, 0.3, width - 0.68, 0.12, (26, 27, 29))
        for x in (0.03, width - 0.35):
            sheet.box(x, top - 0.19, 0.32, 0.15, (206, 210, 212))
            sheet.oval(x + 0.16, top - 0.115, 0.06, 0.06, (246, 248, 244))
        sheet.box(0.63, 0.42, 0.52, 0.11, (226, 226, 222))
    return sheet.texture('car', overlap=False)


@cache
def car_tyres() -> Texture:
    """Two tyres seen along the car, as wide as it and 0.5 m high."""
    sheet = Sheet(CAR_WIDTH, 0.5, 48)
    for x in (0.05, CAR_WIDTH - 0.25):
        sheet.box(x, 0, 0.2, 0.5, TYRE)
    sheet.box(0.25, 0.25, CAR_WIDTH - 0.5, 0.25, (16, 16, 17))
    return sheet.texture('car')


@lru_cache(maxsize=256)
def car_panel(kind: str, color: int) -> Texture:
    """Sheet of body or glass between two outline points: 'hood', 'roof', 'front', 'back'."""
    paint = CAR_COLORS[color]
    sheet = Sheet(CAR_WIDTH, 0.9, 32)
    tone = {'hood': 1.12, 'roof': 1.08, 'front': 0.9, 'back': 0.9}[kind]
    if kind in ('front', 'back'):
        inset, right = 0.7 * CAR_INSET, CAR_WIDTH  # reaches into the sides, to leave no slit
        sheet.polygon(((0, 0), (inset, 0.9), (right - inset, 0.9), (right, 0)),
                      shaded(paint, tone))  # fmt: skip
        sheet.polygon(((0.09, 0.04), (inset + 0.07, 0.86), (right - inset - 0.07, 0.86),
                       (right - 0.09, 0.04)), GLASS)  # fmt: skip
        sheet.polygon(((0.14, 0.3), (inset + 0.08, 0.85), (right - inset - 0.08, 0.85),
                       (right - 0.14, 0.5)), (72, 82, 92))  # fmt: skip
        for x in (0.45, 1.32):
            sheet.oval(x, 0.3, 0.15, 0.2, (24, 26, 28))
    else:
        sheet.box(0, 0, CAR_WIDTH, 0.9, shaded(paint, tone))
        sheet.box(0.3, 0, CAR_WIDTH - 0.6, 0.9, shaded(paint, 1.04 * tone))
    return sheet.texture('car', overlap=True)


@lru_cache(maxsize=128)
def box_side(kind: str, variant: int) -> Texture:
    """Side of a big vehicle, front to the right: 'bus', 'train', 'cargo' or 'cab'."""
    rng = generator(41, variant)
    paint = ((186, 24, 28), (222, 218, 206), (36, 74, 122), (214, 160, 30), (70, 122, 72))[
        variant % 5
    ]
    if kind == 'cargo':
        sheet = Sheet(6, 3.4, 24)
        sheet.box(0, 0.5, 6, 0.35, (40, 42, 44))
        sheet.box(0, 0.85, 6, 2.55, ((222, 222, 218), paint, (150, 154, 152))[variant % 3])
        sheet.box(0.6, 1.9, 4.4, 0.7, rng.integers(30, 220, 3))
        for x in (1.0, 2.1, 5.0):
            sheet.oval(x, 0.48, 0.48, 0.48, TYRE)
            sheet.oval(x, 0.48, 0.24, 0.24, (110, 112, 114))
        return sheet.texture('truck')
    if kind == 'cab':
        sheet = Sheet(2.1, 2.8, 32)
        sheet.polygon(((0, 0.45), (0, 2.8), (1.8, 2.8), (2.1, 1.7), (2.1, 0.45)), paint)
        sheet.polygon(((0.75, 1.6), (0.75, 2.45), (1.75, 2.45), (2.0, 1.6)), GLASS)
        sheet.line(((0.7, 0.6), (0.7, 2.5)), 0.02, shaded(paint, 0.6))
        sheet.oval(1.0, 0.48, 0.52, 0.52, (16, 16, 17))
        sheet.oval(1.0, 0.48, 0.26, 0.26, (120, 122, 124))
        return sheet.texture('truck')
    length, top = (11.0, 3.1) if kind == 'bus' else (14.0, 3.5)
    sheet = Sheet(length, top, 22)
    sheet.box(0, 0.3, length, top - 0.3, paint)
    sheet.box(0, 0.3, length, 0.35, shaded(paint, 0.6))
    sheet.box(0, top - 0.35, length, 0.35, shaded(paint, 0.85))
    sheet.box(0.2, 1.35, length - 0.3, 1.2, GLASS)
    sheet.box(0.2, 1.9, length - 0.3, 0.6, (54, 62, 70))
    for x in np.arange(1.5, length - 0.5, 1.45):
        sheet.box(x, 1.35, 0.1, 1.2, (24, 26, 28))
    for x in (0.24 * length, 0.55 * length, length - 1.3):
        sheet.box(x, 0.45, 1.1, 2.15, (66, 72, 78))
        sheet.line(((x + 0.55, 0.45), (x + 0.55, 2.6)), 0.04, (24, 26, 28))
    if kind == 'bus':
        for x in (2.6, length - 2.4):
            sheet.oval(x, 0.48, 0.48, 0.48, TYRE)
            sheet.oval(x, 0.48, 0.26, 0.26, (120, 122, 124))
    else:
        sheet.box(0.8, 0.05, length - 1.6, 0.3, (44, 46, 48))
    return sheet.texture('bus' if kind == 'bus' else 'train')


@lru_cache(maxsize=128)
def box_end(kind: str, variant: int, rear: bool) -> Texture:
    """Front or rear of a big vehicle: 'bus', 'train', 'cargo' or 'cab'."""
    paint = ((186, 24, 28), (222, 218, 206), (36, 74, 122), (214, 160, 30), (70, 122, 72))[
        variant % 5
    ]
    width = 2.45
    top = {'bus': 3.1, 'train': 3.5, 'cargo': 3.4, 'cab': 2.8}[kind]
    sheet = Sheet(width, top, 36)
    for x in (0.1, width - 0.45):
        sheet.box(x, 0, 0.35, 0.5, TYRE)
    if kind == 'cargo':
        body = ((222, 222, 218), paint, (150, 154, 152))[variant % 3]
        sheet.box(0, 0.8, width, top - 0.8, shaded(body, 0.9))
        sheet.box(0.1, 0.45, width - 0.2, 0.35, (36, 38, 40))
        sheet.line(((width / 2, 0.85), (width / 2, top - 0.1)), 0.04, shaded(body, 0.5))
        for x in (0.5, 1.95):
            sheet.line(((x, 0.9), (x, top - 0.15)), 0.03, (120, 122, 124))
        for x in (0.12, width - 0.42):
            sheet.box(x, 0.5, 0.3, 0.2, (160, 22, 18))
        return sheet.texture('truck')
    sheet.box(0, 0.32, width, top - 0.32, shaded(paint, 0.95))
    sheet.box(0, 0.32, width, 0.3, shaded(paint, 0.55))
    low = {'bus': 1.15, 'train': 1.3, 'cab': 1.5}[kind]
    high = top - (0.5 if kind != 'cab' else 0.4)
    if rear:
        low = 1.7
    sheet.box(0.14, low, width - 0.28, high - low, GLASS)
    right = width - 0.14
    glint = ((0.14, low + 0.5), (0.14, high), (right, high), (right, low + 0.9))
    sheet.polygon(glint, (70, 80, 90))
    if kind in ('bus', 'train'):
        sheet.box(0.3, top - 0.42, width - 0.6, 0.3, (22, 22, 24))
        sheet.box(0.5, top - 0.36, 1.0, 0.18, (232, 150, 40))
    lamps = (172, 24, 20) if rear else (236, 238, 232)
    for x in (0.12, width - 0.47):
        sheet.box(x, 0.7, 0.35, 0.22, lamps)
    return sheet.texture({'bus': 'bus', 'train': 'train', 'cab': 'truck'}[kind])
