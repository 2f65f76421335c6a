"""Motions of a window over footage: which classes there are, how one is drawn, how it is rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SIZE = 64  # pixels, width and height of a clip
FRAMES = 20  # frames of a clip

# class -> (axis it moves along, whether it is the axis run backward)
# Names say what the window does: in pan_left the window goes left and the picture in it goes right.
CLASSES: dict[str, tuple[str, bool]] = {
    "pan_left": ("x", True),
    "pan_right": ("x", False),
    "pan_up": ("y", True),
    "pan_down": ("y", False),
    "zoom_in": ("zoom", False),
    "zoom_out": ("zoom", True),
    "rotate_cw": ("turn", False),
    "rotate_ccw": ("turn", True),
    "pan_up_left": ("falling", True),
    "pan_down_right": ("falling", False),
    "pan_down_left": ("rising", True),
    "pan_up_right": ("rising", False),
    "shear_left": ("shear", True),
    "shear_right": ("shear", False),
    "speed_up": ("pace", False),
    "slow_down": ("pace", True),
}

_PANS = {"x": (1.0, 0.0), "y": (0.0, 1.0), "falling": (0.707, 0.707), "rising": (0.707, -0.707)}
_PAN_SPEED = (1.4, 2.8)  # clip pixels a frame
_ZOOM_SPEED = (0.025, 0.042)  # log scale a frame
_TURN_SPEED = (math.radians(2.2), math.radians(4.0))  # radians a frame
_PACE = (2.5, 3.2)  # log of a changing pan's last speed over its first
_SHEAR_SPEED = (0.045, 0.07)  # clip pixels a frame, at one pixel from the middle row
_DRIFT = 0.15  # clip pixels a frame: a hand's unsteadiness, in every class
_MIN_TEXTURE = 4.0  # grey levels a pixel: below, a motion along that axis could not be seen
_MAX_CUT = 30.0  # grey levels: above, two neighbouring frames belong to two shots
_TRIES = 2000


@dataclass(frozen=True)
class Clip:
    """A drawn clip: the window's path, the footage's frame under each, and the exposure.

    path: float64 [frames, 5]: x, y of the window's middle (footage pixels), log scale (footage pixels a clip
    pixel), angle (radians, clockwise on screen), shear. played: int64 [frames], footage frame numbers.
    """

    path: NDArray[np.float64]
    played: NDArray[np.int64]
    gain: float
    offset: float

    def reversed(self) -> Clip:
        """The same clip run backward in time."""
        return replace(self, path=self.path[::-1].copy(), played=self.played[::-1].copy())


def progress(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How far along its motion a clip is at each frame: [frames], rising from -0.5 to 0.5, nearly evenly."""
    time = np.linspace(0.0, 1.0, frames)
    ease = rng.uniform(-0.3, 0.3)
    return time - 0.5 + ease * np.sin(2 * math.pi * time) / (2 * math.pi)


def draw_path(axis: str, frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A window's path along an axis, run forward, around (0, 0): [frames, 5] as in `Clip.path`.

    Scale, angle and shear range much alike over the axes of a set, so that a still says little.
    """
    step = progress(frames, rng)
    span = frames - 1
    shear = step * 0.0 + (rng.uniform(-0.4, 0.4) if axis in ("falling", "rising", "pace") else 0.0)
    scale = step * 0.0 + rng.uniform(math.log(0.6), math.log(1.2))
    angle = step * 0.0 + rng.uniform(-0.6, 0.6)
    angled = angle[0]
    moved = rng.uniform(-_DRIFT, _DRIFT, 2)[None] * span * np.linspace(-0.5, 0.5, frames)[:, None]
    if axis in _PANS:
        moved = moved + step[:, None] * span * rng.uniform(*_PAN_SPEED) * np.array(_PANS[axis])
    elif axis == "pace":
        way = rng.choice([-1.0, 1.0])
        gone = np.expm1((step + 0.5) * rng.uniform(*_PACE))
        gone = gone / gone[-1] - 0.5
        moved = moved + gone[:, None] * span * rng.uniform(*_PAN_SPEED) * np.array([way, 0.0])
    elif axis == "zoom":
        scale = math.log(0.85) + rng.uniform(-0.1, 0.1) - step * span * rng.uniform(*_ZOOM_SPEED)
    elif axis == "turn":
        angle = rng.uniform(-0.3, 0.3) + step * span * rng.uniform(*_TURN_SPEED)
    elif axis == "shear":
        shear = rng.uniform(-0.1, 0.1) + step * span * rng.uniform(*_SHEAR_SPEED)
    # A pan is along the window's own sides, whatever its tilt.
    turn = np.array([[math.cos(angled), math.sin(angled)], [-math.sin(angled), math.cos(angled)]])
    middle = moved @ turn * math.exp(float(scale.mean()))
    return np.column_stack([middle, scale, angle, shear])


def sample_points(path: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Where each clip pixel lies in the footage: [frames, size, size, 2] (x, y in footage pixels)."""
    side = np.arange(size) - (size - 1) / 2
    v, u = np.meshgrid(side, side, indexing="ij")
    x, y, scale, angle, shear = (column[:, None, None] for column in path.T)
    wide = (u + shear * v) * np.exp(scale)
    high = v * np.exp(scale)
    return np.stack(
        [x + wide * np.cos(angle) - high * np.sin(angle), y + wide * np.sin(angle) + high * np.cos(angle)],
        axis=-1,
    )


def render(clip: Clip, footage: NDArray[np.uint8], size: int = SIZE) -> NDArray[np.uint8]:
    """The clip's frames, bilinearly sampled: [frames, size, size, 3] from footage [n, height, width, 3].

    Frames are rendered one by one, so that a reversed clip gives the very same frames in reverse order.
    """
    points = sample_points(clip.path, size)
    out = np.empty((len(points), size, size, 3), np.uint8)
    for frame, (at, number) in enumerate(zip(points, clip.played, strict=True)):
        picture = footage[number].astype(np.float32)
        left = np.clip(np.floor(at[..., 0]).astype(np.int64), 0, picture.shape[1] - 2)
        top = np.clip(np.floor(at[..., 1]).astype(np.int64), 0, picture.shape[0] - 2)
        right = (at[..., 0] - left).astype(np.float32)[..., None]
        below = (at[..., 1] - top).astype(np.float32)[..., None]
        upper = picture[top, left] * (1 - right) + picture[top, left + 1] * right
        lower = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
        mixed = upper * (1 - below) + lower * below
        out[frame] = np.clip((mixed - 128) * clip.gain + 128 + clip.offset + 0.5, 0, 255).astype(np.uint8)
    return out


def draw_clip(
    name: str, footage: NDArray[np.uint8], rng: np.random.Generator, frames: int = FRAMES, size: int = SIZE
) -> tuple[Clip, NDArray[np.uint8]]:
    """A clip of the class `name` over footage [n, height, width, 3], and its frames [frames, size, size, 3].

    A class and its reverse take the same draws: the one is the other run backward. What is refused (a window
    that leaves the picture, too little texture, a cut) is refused of a clip and its reverse alike, and the
    footage plays forward or backward at random; so no single frame tells the two apart.

    Raises: RuntimeError where the footage has no room or texture for the motion.
    """
    axis, backward = CLASSES[name]
    for _ in range(_TRIES):
        path = draw_path(axis, frames, rng)
        played = _draw_played(footage, frames, rng)
        room = _room(path, size, footage.shape[2], footage.shape[1])
        if room is None or played is None:
            continue
        path[:, :2] += rng.uniform(room[0], room[1])
        clip = Clip(path, played, gain=rng.uniform(0.8, 1.2), offset=rng.uniform(-15, 15))
        pictures = render(clip, footage, size)
        if _texture(pictures) >= _MIN_TEXTURE:
            return (clip.reversed(), pictures[::-1].copy()) if backward else (clip, pictures)
    raise RuntimeError(f"no room for {name} over footage of shape {footage.shape}")


def _room(
    path: NDArray[np.float64], size: int, width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The least and greatest shift that keeps the window inside the picture, or None where there is none."""
    corners = sample_points(path, size)[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 2)
    low = -corners.min(axis=0)
    high = np.array([width - 1.0, height - 1.0]) - corners.max(axis=0)
    return (low, high) if (low <= high).all() else None


def _draw_played(footage: NDArray[np.uint8], frames: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Footage frame numbers for a clip, played slowly, either way in time; None where they straddle a cut."""
    rate = rng.uniform(0.1, 0.3)
    steps = np.floor(rate * np.arange(frames)).astype(np.int64)
    if len(footage) <= steps[-1]:
        raise RuntimeError(f"footage of {len(footage)} frames is too short")
    played = steps + rng.integers(0, len(footage) - steps[-1])
    coarse = footage[played[0] : played[-1] + 1, ::8, ::8].astype(np.float32)
    if np.abs(np.diff(coarse, axis=0)).mean(axis=(1, 2, 3)).max(initial=0.0) > _MAX_CUT:
        return None
    return played if rng.random() < 0.5 else played[::-1].copy()


def _texture(pictures: NDArray[np.uint8]) -> float:
    """Mean step between neighbouring pixels (grey levels), along the poorer axis of the poorest frame."""
    grey = pictures.astype(np.float32).mean(axis=-1)
    across = np.abs(np.diff(grey, axis=2)).mean(axis=(1, 2))
    down = np.abs(np.diff(grey, axis=1)).mean(axis=(1, 2))
    return float(np.minimum(across, down).min())
