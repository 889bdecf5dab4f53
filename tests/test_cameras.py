"""Camera paths: what the network is told of angles in degrees, and which lists cannot be."""

import numpy as np
import pytest

from sgm_jax.conditioning import cameras
from sgm_jax.errors import UserError


def test_a_static_orbit_is_as_sgm_samples():
    orbit = cameras.static_orbit(21)
    # From simple_video_sample.py's defaults, by hand: elevation 10, steps of 360/21 that end at 0.
    assert orbit.azimuths[0] == pytest.approx(17.142857)
    assert orbit.azimuths[-1] == 0
    np.testing.assert_allclose(orbit.polars_rad, 1.3962634, rtol=1e-6)
    np.testing.assert_allclose(
        orbit.azimuths_rad[[0, 10, 20]], [0.2991993, 3.2911925, 0], rtol=1e-6
    )
    assert orbit.polars_rad.dtype == orbit.azimuths_rad.dtype == np.float32


def test_azimuths_are_counted_from_the_last():
    orbit = cameras.orbit(4, [0, 30, -30, 90], [30, 120, 210, 300])
    np.testing.assert_allclose(np.rad2deg(orbit.azimuths_rad), [90, 180, 270, 0], atol=1e-4)
    np.testing.assert_allclose(np.rad2deg(orbit.polars_rad), [90, 60, 120, 0], atol=1e-4)
    # A turn may begin anywhere, and be whole.
    for azimuths in ([180, 270, 0, 90], [0, 120, 240, 360], [5, 5, 6, 7]):
        cameras.orbit(4, 0, azimuths)


def test_dynamic_orbits_close_and_differ():
    draw = lambda seed: cameras.preset_orbit('dynamic', 21, elevation=20, seed=seed)
    one, other = draw(0), draw(1)
    for orbit in (one, other):
        assert orbit.azimuths[-1] == 0
        assert orbit.elevations[-1] == pytest.approx(20)
        assert (np.diff(orbit.azimuths[:-1]) >= 0).all()
        assert np.ptp(orbit.elevations) > 1
        assert np.abs(np.diff(orbit.elevations)).max() < 15
    assert (one.azimuths != other.azimuths).any()
    np.testing.assert_array_equal(one.elevations, draw(0).elevations)
    # What is drawn is a path that is also accepted.
    cameras.orbit(21, one.elevations, one.azimuths)


@pytest.mark.parametrize(
    ('elevations', 'azimuths', 'words'),
    [
        ([10] * 20, None, '20 elevations for 21 frames; give one for all frames, or one for each'),
        (95, None, 'the elevation of frame 1 is 95; give degrees from -90 to 90'),
        ([10] * 20 + [float('nan')], None, 'the elevation of frame 21 is nan'),
        (10, [10, 20], '2 azimuths for 21 frames'),
        (
            10,
            [*range(0, 400, 20), 370],
            'the azimuth of frame 20 is 380; give degrees from 0 to 360',
        ),
        (
            10,
            [0, 40, 20, *range(60, 240, 10)],
            'azimuths are not in order: 20 follows 40 on the way to the last one, 230; sort them',
        ),
    ],
)
def test_lists_that_cannot_be(elevations, azimuths, words):
    with pytest.raises(UserError, match=words) as error:
        cameras.orbit(21, elevations, azimuths)
    assert '\n' not in str(error.value)


def test_other_mistakes():
    with pytest.raises(UserError, match="orbit is 'spiral'; choose one of: static, dynamic"):
        cameras.preset_orbit('spiral', 21, elevation=0, seed=0)
    with pytest.raises(UserError, match='elevation of frame 1 is 91'):
        cameras.preset_orbit('static', 21, elevation=91, seed=0)
    with pytest.raises(UserError, match='num_frames is 0'):
        cameras.static_orbit(0)
