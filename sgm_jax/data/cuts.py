"""Whether a window goes over a hard cut: from one shot to another, between two of its frames.

Neighbouring frames of a shot can be made of each other by moving pixels, also where the camera is fast;
those of two shots cannot. So the second frame is moved back along the optical flow; what still differs is

    r_i = mean |frame_i - moved frame_(i+1)|, over pixels and colours, of 1

The window has a cut where the largest r is above 0.12, and above twice the median of the others, but 0.25 is
enough for scenes that flicker. In the five cuts of the demo clips r is 0.136 or more, in all other windows of
2 to 14 frames at 6 to 25 per second 0.1 or less. Flashes count as cuts; fades and dissolves do not.

Source: differences after motion is taken out are Shahraray's ("Scene change detection and content-based
sampling of video sequences", SPIE 2419, 1995); the comparison with the neighbours is as in PySceneDetect's
AdaptiveDetector.
"""

import cv2
import numpy as np

from sgm_jax.data.motion import FLOW_HEIGHT, estimator, flow_width

LOWEST, HIGHEST, OVER_MEDIAN = 0.12, 0.25, 2.0


def has_cut(frames: np.ndarray) -> bool:
    """Whether there is a hard cut between two neighbours of uint8 frames (t, h, w, 3)."""
    left = residuals(frames)
    if not len(left):
        return False
    # If the largest is no cut, no other is: it is smaller, and among its others is the largest.
    others = np.delete(left, left.argmax())
    median = np.median(others) if len(others) else 0.0
    return bool(left.max() > np.clip(OVER_MEDIAN * median, LOWEST, HIGHEST))


def residuals(frames: np.ndarray) -> np.ndarray:
    """(t - 1,) in 0..1: what differs between neighbours of uint8 (t, h, w, 3) once motion is taken out."""
    width, flow = flow_width(frames), estimator()
    small = [
        cv2.resize(frame, (width, FLOW_HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames
    ]
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small]
    # A little blur: edges that are half a pixel beside themselves are no difference.
    soft = [cv2.blur(frame.astype(np.float32) / 255, (3, 3)) for frame in small]
    down, across = np.mgrid[:FLOW_HEIGHT, :width].astype(np.float32)
    left = []
    for i in range(len(frames) - 1):
        moved = flow.calc(gray[i], gray[i + 1], None)
        back = cv2.remap(
            soft[i + 1],
            across + moved[..., 0],
            down + moved[..., 1],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        left.append(np.abs(back - soft[i]).mean())
    return np.array(left, np.float64)
