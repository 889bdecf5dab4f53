"""How much a clip moves, as the number that Stable Video Diffusion is conditioned on.

SVD is told a `motion_bucket_id`; its own calibration is unpublished, and its sampling script defaults to 127
(sgm: scripts/sampling/simple_video_sample.py). The number here is this project's own, and only its order is
meant to agree with SVD's: more motion, a larger number.

    m      = mean length of the optical flow between consecutive frames of the window, over all pixels,
             in frame heights (0.01 is 1% of the height per frame)
    bucket = round(255 m / (m + 0.01))

A still is 0, a mean motion of 1% of the height per frame is the middle of the range (128), and nothing
saturates. At 7 frames per second the whole frames of the demo clips have medians of 90 (animation), 130 (a
man talking) and 200 (a street with cyclists); at 25 per second 35, 70 and 150. For motion is counted per
frame of the window, not per second: the network is told the frame rate apart (`fps_id`).

Source: Blattmann et al. 2023 (SVD, arXiv:2311.15127) score clips by optical flow too, for curation; the
flow here is Kroeger et al. 2016 (DIS, arXiv:1603.03590) as OpenCV has it.
"""

import cv2
import numpy as np

HALF = 0.01  # frame heights per frame at which the bucket is half of 255
FLOW_HEIGHT = 64  # pixels; small enough for a window to cost a few milliseconds
MAX_PAIRS = 8


def mean_flow(frames: np.ndarray) -> float:
    """Mean flow length of uint8 frames (t, h, w, 3), in frame heights per frame; 0 for one frame.

    At most `MAX_PAIRS` pairs of neighbours are measured, spread evenly over the clip.
    """
    if len(frames) < 2:
        return 0.0
    width, flow = flow_width(frames), estimator()
    starts = np.unique(np.linspace(0, len(frames) - 2, MAX_PAIRS).round().astype(int))
    gray = {i: _small_gray(frames[i], width) for start in starts for i in (start, start + 1)}
    # Across and down are scaled apart by the resize to whole pixels; both are in heights of the frame.
    unit = np.array([width * frames.shape[1] / frames.shape[2], FLOW_HEIGHT], np.float32)
    lengths = [
        np.linalg.norm(flow.calc(gray[i], gray[i + 1], None) / unit, axis=-1).mean() for i in starts
    ]
    return float(np.mean(lengths))


def bucket_of(motion: float) -> float:
    """The bucket, a whole number in 0..255, of a mean flow."""
    return float(round(255 * motion / (motion + HALF)))


def motion_bucket_id(frames: np.ndarray) -> float:
    """The bucket of uint8 frames (t, h, w, 3)."""
    return bucket_of(mean_flow(frames))


def flow_width(frames: np.ndarray) -> int:
    """The width to which frames (t, h, w, 3) are scaled, with `FLOW_HEIGHT`, for their flow."""
    return max(FLOW_HEIGHT // 2, round(FLOW_HEIGHT * frames.shape[2] / frames.shape[1]))


def estimator() -> cv2.DISOpticalFlow:
    """What finds the flow between two grey pictures of that size."""
    # The pipeline's threads are enough.
    cv2.setNumThreads(1)
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow.setFinestScale(1)
    return flow


def _small_gray(frame: np.ndarray, width: int) -> np.ndarray:
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (width, FLOW_HEIGHT), interpolation=cv2.INTER_AREA)
