"""The world the demo model knows: captioned landscapes drawn by a program.

A picture is a function of its caption's attributes and a seed, nothing else. Geometry lives in coordinates from 0 to 1,
so one scene can be drawn at any size and in any aspect ratio.

The world has two looks with the same geometry. The soft one forgives what a small model gets a little wrong: rims are a
few thousandths of the picture wide, bodies glow, distance is hazy, lights in windows are blobs. The hard one has edges of
one pixel, panes of glass and teeth on every crest.

    sample_attributes(rng) -> Attributes     what is in the picture, at random
    caption(attributes, rng) -> str          the words for it
    render(attributes, seed, width, height)  the picture, uint8 [height, width, 3]; look="hard" for the hard look

The seed's random numbers are drawn in a fixed order. Adding a draw in the middle changes every picture.
"""

from dataclasses import dataclass

import numpy as np

SCENES = ["snowy mountains", "rocky mountains", "desert dunes", "a pine forest", "a calm sea", "a city skyline", "rolling hills", "a deep canyon"]
TIMES = ["at dawn", "at noon", "at sunset", "at night"]
WEATHERS = ["", "under scattered clouds", "in thick fog", "under a starry sky"]
BODIES = ["", "a sun", "a full moon", "a crescent moon", "two moons", "a ringed planet"]
SIDES = ["on the left", "in the center", "on the right"]
TONES = ["", "red", "purple", "teal", "golden", "green"]
STYLES = ["", "concept art of ", "a painting of "]

# Attribute name to its values, in the order a caption names them; the classifiers have one head for each.
VALUES = {"scene": SCENES, "time": TIMES, "weather": WEATHERS, "body": BODIES, "side": SIDES, "tone": TONES}

# Sky colours from the top over the middle to the horizon.
SKY_RGB = {
    "at dawn": ((70, 96, 160), (214, 150, 170), (255, 214, 170)),
    "at noon": ((46, 110, 200), (110, 170, 230), (200, 226, 245)),
    "at sunset": ((60, 40, 110), (220, 90, 70), (255, 180, 80)),
    "at night": ((6, 8, 26), (16, 24, 60), (40, 54, 100)),
}
GROUND_RGB = {
    "snowy mountains": (90, 104, 130),
    "rocky mountains": (92, 74, 66),
    "desert dunes": (206, 150, 84),
    "a pine forest": (30, 72, 50),
    "a calm sea": (30, 84, 120),
    "a city skyline": (50, 52, 66),
    "rolling hills": (84, 136, 58),
    "a deep canyon": (168, 78, 46),
}
TONE_RGB = {"red": (200, 40, 40), "purple": (130, 50, 190), "teal": (20, 170, 170), "golden": (235, 180, 50), "green": (50, 180, 70)}
DAYLIGHT = {"at dawn": 0.8, "at noon": 1.0, "at sunset": 0.66, "at night": 0.30}
SIDE_X = {"on the left": 0.22, "in the center": 0.5, "on the right": 0.78}
N_LAYERS = 4
# Width of a rim in the soft look, in heights of the picture, and what distance adds to it.
SOFT_RIM, HAZY_RIM = 0.006, 0.010


@dataclass(frozen=True)
class Attributes:
    """What is in a picture. Empty strings mean none; `side` is empty exactly when `body` is."""

    scene: str
    time: str
    weather: str
    body: str
    side: str
    tone: str

    def index(self, name):
        """Number of the attribute's value in `VALUES[name]`, -1 where it has none (the side of no body)."""
        values, value = VALUES[name], getattr(self, name)
        return values.index(value) if value in values else -1


def sample_attributes(rng):
    """Draws attributes: scene, time, body and side evenly, a tone in five of twelve pictures, stars only at night."""
    time = TIMES[rng.integers(4)]
    body = BODIES[rng.integers(6)]
    weather = WEATHERS[rng.integers(4)]
    if weather == "under a starry sky" and time != "at night":
        weather = ""
    scene = SCENES[rng.integers(8)]
    side = SIDES[rng.integers(3)] if body else ""
    tone = TONES[rng.integers(6)] if rng.random() < 0.5 else ""
    return Attributes(scene, time, weather, body, side, tone)


def caption(attributes, rng=None):
    """SCENE TIME [WEATHER] [with BODY SIDE] [in TONE tones]; with `rng`, a style stands before it in 30 of 100."""
    text = f"{attributes.scene} {attributes.time}"
    if attributes.weather:
        text += f" {attributes.weather}"
    if attributes.body:
        text += f" with {attributes.body} {attributes.side}"
    if attributes.tone:
        text += f" in {attributes.tone} tones"
    if rng is not None:
        draw = rng.random()
        text = STYLES[1 if draw < 0.15 else 2 if draw < 0.3 else 0] + text
    return text


def all_captions():
    """Every caption without style: the whole language of the world."""
    for scene in SCENES:
        for time in TIMES:
            for weather in WEATHERS if time == "at night" else WEATHERS[:3]:
                for body in BODIES:
                    for side in SIDES if body else [""]:
                        for tone in TONES:
                            yield caption(Attributes(scene, time, weather, body, side, tone))


def mix(a, b, share_of_b):
    """`a` where the share is 0, `b` where it is 1."""
    return a * (1 - share_of_b) + b * share_of_b


def noise_line(x, rng, octaves, rough, freq):
    """Smooth noise in 0..1 along a line; every octave has about twice the frequency and `rough` of the height."""
    y, height, total = np.zeros_like(x), 1.0, 0
    for _ in range(octaves):
        values = rng.random(int(freq * 2) + 4)
        position = x * freq
        cell = np.floor(position).astype(int)
        part = position - np.floor(position)
        part = part * part * (3 - 2 * part)
        y += height * (values[cell] * (1 - part) + values[cell + 1] * part)
        total += height
        height *= rough
        freq *= 2.03
    return y / total


class Painter:
    """One picture while it is painted, from the back to the front."""

    def __init__(self, attributes, seed, width, height, look="soft"):
        self.attributes = attributes
        self.soft = look == "soft"
        self.rng = np.random.default_rng(seed)
        self.width, self.height = width, height
        self.aspect = width / height
        self.x = ((np.arange(width) + 0.5) / width)[None, :]
        self.y = ((np.arange(height) + 0.5) / height)[:, None]
        self.pixel = 1.0 / height
        self.tone = np.array(TONE_RGB[attributes.tone], np.float32) if attributes.tone else None
        self.low_light = attributes.time in ("at sunset", "at dawn")
        self.light = DAYLIGHT[attributes.time]
        self.body_x = None

    def tint(self, colour, strength):
        """The colour, drawn towards the caption's tone at its own brightness."""
        colour = np.array(colour, np.float32)
        if self.tone is None:
            return colour
        brightness = colour.mean() / 255
        return mix(colour, self.tone * (0.35 + 0.9 * brightness), strength)

    def lay(self, colour, cover):
        """Paints `colour` where `cover` [height, width] is above 0."""
        self.image = mix(self.image, colour, cover[..., None])

    def edge(self, distance, haze=0.0):
        """1 where the distance is positive, 0 where negative, a rim between; `haze` from 0 to 1 widens it."""
        if not self.soft:
            return np.clip(distance / self.pixel + 0.5, 0, 1)
        cover = np.clip(distance / max(self.pixel, SOFT_RIM + HAZY_RIM * haze) + 0.5, 0, 1)
        return cover * cover * (3 - 2 * cover)

    def paint(self):
        self.paint_sky()
        if self.attributes.weather == "under a starry sky":
            self.paint_stars()
        if self.attributes.body:
            self.paint_body()
        if self.attributes.weather == "under scattered clouds":
            self.paint_clouds()
        self.paint_ground()
        return np.clip(self.image, 0, 255).astype(np.uint8)

    def paint_sky(self):
        top, middle, self.horizon_colour = [self.tint(colour, 0.55) for colour in SKY_RGB[self.attributes.time]]
        self.horizon = 0.60 + 0.1 * (self.rng.random() - 0.5)
        t = np.clip(self.y / self.horizon, 0, 1)
        upper = mix(top, middle, (t / 0.55)[..., None])
        lower = mix(middle, self.horizon_colour, ((t - 0.55) / 0.45)[..., None])
        sky = np.where(t[..., None] < 0.55, upper, lower)
        self.image = np.broadcast_to(sky, (self.height, self.width, 3)).astype(np.float32).copy()

    def paint_stars(self):
        n_stars = 60
        xs = self.rng.random(n_stars)
        ys = self.rng.random(n_stars) * self.horizon * 0.9
        radii = 0.002 + 0.004 * self.rng.random(n_stars) ** 3
        white = np.array([250, 246, 230], np.float32)
        for x, y, r in zip(xs, ys, radii):
            columns = slice(int(max(0, (x - 3 * r) * self.width)), int(min(self.width, (x + 3 * r) * self.width + 2)))
            rows = slice(int(max(0, (y - 4 * r) * self.height)), int(min(self.height, (y + 4 * r) * self.height + 2)))
            distance = np.hypot((self.x[:, columns] - x) * self.aspect, self.y[rows] - y)
            if self.soft:
                cover = 0.9 * np.exp(-((distance / (1.4 * r)) ** 2)) * min(1, r / self.pixel)
            else:
                cover = self.edge(r - distance) * min(1, r / self.pixel)
            self.image[rows, columns] = mix(self.image[rows, columns], white, cover[..., None])

    def paint_disk(self, x, y, radius, colour, glow):
        """A disk with a halo that fades over about its own radius."""
        colour = np.array(colour, np.float32)
        distance = np.hypot((self.x - x) * self.aspect, self.y - y)
        if self.soft:
            glow = 0.25 + 0.75 * glow
        self.lay(colour, glow * np.exp(-np.maximum(distance - radius, 0) / (radius * 0.9)))
        self.lay(colour, self.edge(radius - distance))

    def paint_body(self):
        x = SIDE_X[self.attributes.side] + 0.06 * (self.rng.random() - 0.5)
        y = (0.27 if self.low_light else 0.20) + 0.06 * (self.rng.random() - 0.5)
        self.body_x = x
        body = self.attributes.body
        if body == "a sun":
            self.paint_disk(x, y, 0.085, (255, 214, 120) if self.low_light else (255, 240, 190), 0.55)
        elif body == "a full moon":
            self.paint_disk(x, y, 0.075, (238, 238, 226), 0.25)
        elif body == "a crescent moon":
            dx, dy = (self.x - x) * self.aspect, self.y - y
            disk = self.edge(0.075 - np.hypot(dx, dy))
            shadow = self.edge(0.068 - np.hypot(dx - 0.035, dy + 0.012))
            colour = np.array([242, 240, 222], np.float32)
            if self.soft:
                self.lay(colour, 0.18 * np.exp(-((dx**2 + dy**2) / 0.11**2)))
            self.lay(colour, disk * (1 - shadow))
        elif body == "two moons":
            self.paint_disk(x - 0.06 / self.aspect, y, 0.06, (236, 230, 220), 0.2)
            self.paint_disk(x + 0.09 / self.aspect, y - 0.07, 0.035, (206, 180, 190), 0.15)
        else:
            self.paint_ringed_planet(x, y)

    def paint_ringed_planet(self, x, y):
        colour = np.array([214, 160, 120], np.float32)
        ring_colour = np.array([240, 222, 190], np.float32)
        dx, dy = (self.x - x) * self.aspect, self.y - y
        along, across = dx * 0.94 + dy * 0.34, -dx * 0.34 + dy * 0.94
        ellipse = np.hypot(along, across * 3.6)
        rim = max(self.pixel, 2 * SOFT_RIM) if self.soft else self.pixel
        ring = np.clip((0.175 - ellipse) / rim * 0.7 + 0.5, 0, 1) * np.clip((ellipse - 0.125) / rim * 0.7 + 0.5, 0, 1)
        self.lay(ring_colour, 0.85 * (ring * (across < 0)))
        self.paint_disk(x, y, 0.095, colour, 0.12)
        shade = self.edge(0.095 - np.hypot(dx, dy)) * np.clip((along + 0.02) * 6, 0, 0.55)
        self.lay(colour * 0.35, shade)
        self.lay(ring_colour, 0.9 * (ring * (across >= 0)))

    def paint_clouds(self):
        night = self.attributes.time == "at night"
        colour = self.tint((90, 96, 124) if night else (250, 250, 250), 0.25)
        colour = mix(colour, self.horizon_colour, 0.25)
        rng = self.rng
        for _ in range(7):
            x, y = rng.random(), (0.08 + 0.75 * rng.random()) * self.horizon
            wide, high = 0.10 + 0.12 * rng.random(), 0.018 + 0.02 * rng.random()
            cloud = np.zeros((self.height, self.width), np.float32)
            for _ in range(5):
                dx, dy, size = (rng.random() - 0.5) * wide * 1.3, (rng.random() - 0.7) * high * 1.2, 0.5 + 0.6 * rng.random()
                puff = ((self.x - x - dx) / (wide * size * 0.6)) ** 2 + ((self.y - y - dy) / (high * size)) ** 2
                cloud = np.maximum(cloud, np.clip(1.25 - puff, 0, 1))
            self.lay(colour, 0.75 * np.clip(cloud * 1.6, 0, 1))

    def paint_ground(self):
        scene = self.attributes.scene
        fog = 0.75 if self.attributes.weather == "in thick fog" else 0.0
        base = self.tint(np.array(GROUND_RGB[scene], np.float32) * self.light, 0.45)
        n_layers = N_LAYERS
        if scene == "a calm sea":
            self.paint_sea(base)
            n_layers = 1
        for layer in range(n_layers):
            nearness = (layer + 1) / n_layers
            ridge, smooth_ridge = self.ridge(layer)
            haze = (1 - nearness) * 0.62 + fog * (1 - nearness * 0.55)
            self.paint_layer(layer, base * (1.15 - 0.55 * nearness), haze, ridge, smooth_ridge)
            if self.soft and layer < n_layers - 1:
                mist = 0.22 * (1 - nearness) * np.exp(-(((self.y - self.horizon - 0.10 * layer - 0.06) / 0.07) ** 2))
                self.lay(self.horizon_colour, mist * np.ones_like(self.x))
        if fog:
            band = fog * 0.55 * np.exp(-(((self.y - self.horizon - 0.05) / 0.22) ** 2))
            self.image = mix(self.image, self.horizon_colour, band[..., None] * np.ones_like(self.image))

    def paint_sea(self, base):
        water = self.edge(self.y - self.horizon)
        depth = np.clip((self.y - self.horizon) / (1 - self.horizon), 0, 1)
        colour = mix(mix(self.horizon_colour, base, 0.45), base, depth[..., None])
        waves = (noise_line(depth[:, 0] ** 0.6, self.rng, 4, 0.7, 9.0) - 0.5)[:, None, None] * 60 * self.light
        sea = colour + waves
        if self.body_x is not None:
            glints = noise_line(depth[:, 0], self.rng, 3, 0.6, 14.0)[:, None] > 0.5
            column = np.exp(-(((self.x - self.body_x) * self.aspect / (0.05 + 0.08 * depth)) ** 2))
            reflection = column * (0.35 + 0.65 * glints)
            sea = mix(sea, np.array([250, 236, 200], np.float32), (0.6 * reflection)[..., None])
        self.lay(sea, water)

    def ridge(self, layer):
        """Height of the layer's upper edge in every column, and the same without its small teeth (for the light)."""
        x, rng, horizon, scene = self.x[0], self.rng, self.horizon, self.attributes.scene
        if scene in ("snowy mountains", "rocky mountains"):
            noise = noise_line(x, rng, 3, 0.5, 2.6)
            teeth = noise_line(x, rng, 3, 0.5, 18.0) - 0.5
            crest = 1 - np.abs(2 * noise - 1)
            smooth = horizon + 0.10 * layer - (0.34 - 0.05 * layer) * crest * (1.0 if layer < 2 else 0.6)
            return smooth + (0.025 if self.soft else 0.035) * teeth, smooth
        if scene == "desert dunes":
            ridge = horizon + 0.02 + 0.10 * layer - 0.10 * noise_line(x + rng.random(), rng, 2, 0.3, 1.6 + 0.3 * layer)
        elif scene == "rolling hills":
            ridge = horizon + 0.02 + 0.10 * layer - 0.16 * noise_line(x + rng.random(), rng, 2, 0.35, 2.2)
        elif scene == "a pine forest":
            ridge = self.tree_line(layer)
        elif scene == "a city skyline":
            ridge = self.roof_line(layer)
        elif scene == "a deep canyon":
            noise = noise_line(x, rng, 4, 0.5, 2.0)
            from_middle = np.abs(x - 0.5) * 2
            wall = np.clip(from_middle * 1.25 - (0.75 - 0.22 * layer) + 0.35 * (noise - 0.5), 0, 0.55)
            ridge = horizon + 0.18 - (0.42 + 0.06 * layer) * wall * 1.3
            ridge = ridge + 0.05 * layer
            if not self.soft:
                ridge = np.round(ridge * 40) / 40 * 0.5 + ridge * 0.5
        else:  # the shore before a calm sea
            noise = noise_line(x, rng, 4, 0.5, 3.0)
            ridge = 0.99 - 0.28 * np.maximum(noise - 0.45, 0) if self.soft else 0.97 - 0.10 * noise * (noise > 0.5)
        return ridge, ridge

    def tree_line(self, layer):
        x, rng = self.x[0], self.rng
        ground = self.horizon - 0.02 + 0.11 * layer - 0.08 * noise_line(x, rng, 2, 0.4, 2.0)
        ridge = ground.copy()
        for _ in range(int((26 - 4 * layer) * self.aspect)):
            tree_x, tree_height = rng.random(), (0.10 + 0.05 * layer) * (0.6 + 0.6 * rng.random())
            half_width = tree_height * 0.26 / self.aspect
            ridge = np.minimum(ridge, np.interp(tree_x, x, ground) - tree_height * (1 - np.abs(x - tree_x) / half_width))
        return ridge

    def roof_line(self, layer):
        x, rng = self.x[0], self.rng
        street = self.horizon + 0.06 + 0.09 * layer
        ridge = np.full_like(x, street)
        for _ in range(int(13 * self.aspect)):
            house_x = rng.random()
            half_width = (0.03 + 0.05 * rng.random()) / self.aspect
            house_height = (0.34 - 0.06 * layer) * rng.random() ** 1.3 + 0.04
            ridge = np.where(np.abs(x - house_x) < half_width, np.minimum(ridge, street - house_height), ridge)
        return ridge

    def paint_layer(self, layer, base, haze, ridge, smooth_ridge):
        scene, time = self.attributes.scene, self.attributes.time
        colour = mix(base, self.horizon_colour, np.clip(haze, 0, 0.93))
        below = self.y - ridge[None, :]
        depth = np.clip(below / 0.35, 0, 1)
        ground = np.broadcast_to(colour, (self.height, self.width, 3)).copy()
        ground = ground * (1.06 - 0.28 * depth[..., None])
        if scene == "snowy mountains" and layer < 3:
            ground = self.with_snow(ground, layer, haze)
        if scene in ("snowy mountains", "rocky mountains", "desert dunes"):
            slope = np.gradient(smooth_ridge) * self.width / self.aspect
            fade = np.exp(-np.clip(below, 0, 1)[..., None] / 0.12)
            ground = ground * (1 + np.clip(slope * 0.5, -0.35, 0.35)[None, :, None] * fade)
        if scene == "a city skyline" and time != "at noon":
            ground = self.with_windows(ground, layer, haze, depth)
        self.lay(ground, self.edge(below, min(haze, 1)))

    def with_snow(self, ground, layer, haze):
        line = self.horizon + 0.10 * layer - 0.10 - 0.05 * noise_line(self.x[0], self.rng, 5, 0.6, 9.0)[None, :]
        cover = np.clip((line - self.y) / (0.02 if self.soft else self.pixel * 2) + 0.5, 0, 1)
        snow = np.array([240, 244, 252], np.float32) * (0.45 + 0.55 * self.light)
        snow = mix(snow, self.horizon_colour, np.clip(haze * 0.7, 0, 0.9))
        snow = mix(snow, self.tint(snow, 0.5), 0.5)
        return mix(ground, snow, cover[..., None])

    def with_windows(self, ground, layer, haze, depth):
        column, row = self.x * 44 * self.aspect, self.y * 44

        def lottery(column, row):
            """True where the pane of this number is lit."""
            return np.abs(np.modf(np.sin(column * 12.9898 + row * 78.233 + layer * 3.1) * 43758.5453)[0]) > 0.62

        if self.soft:
            # A blob for every four panes, as bright as there are lit ones among them.
            left, top = 2 * np.floor(column / 2), 2 * np.floor(row / 2)
            lit = sum(lottery(left + i, top + j).astype(np.float32) for i in (0, 1) for j in (0, 1)) / 4
            spot = np.exp(-(((column - left - 1) / 0.62) ** 2 + ((row - top - 1) / 0.62) ** 2))
            lit = (0.12 + np.minimum(1, 1.4 * lit) * spot) * np.clip((depth - 0.02) / 0.05, 0, 1)
        else:
            pane = (np.abs(np.modf(column)[0] - 0.5) < 0.28) * (np.abs(np.modf(row)[0] - 0.5) < 0.28)
            lit = lottery(np.floor(column), np.floor(row)) * pane * (depth > 0.02)
        strength = 0.85 if self.attributes.time == "at night" else 0.5
        return mix(ground, np.array([255, 214, 130], np.float32), (lit * (1 - haze) * strength)[..., None])


def render(attributes, seed, width, height, look="soft"):
    """The picture of the attributes, uint8 [height, width, 3]. The seed shapes ridges, clouds, trees and the like.

    The geometry is the same in both looks, "soft" and "hard".
    """
    return Painter(attributes, seed, width, height, look).paint()
