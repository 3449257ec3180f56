"""What an IMU has measured lately, and its mean over the time between two images."""

from collections import deque
from threading import Lock

from dense_perception.errors import InputError
from dense_perception.geometry.camera import Array
from dense_perception.ros.consuming import nanoseconds
import numpy as np
from sensor_msgs.msg import Imu

_KEPT_S = 2.0
_KEPT = 4096  # measurements; two seconds of the fastest IMU
_LATE_S = 0.05  # that a measurement may lie from either image
_FASTEST = 1000.0  # rad/s; more than any gyroscope measures
_BACK_S = 1.0  # a jump back in time that begins anew; less is a measurement out of order


class TurnRates:
    """Angular velocities by time; every method may be called from any thread."""

    def __init__(self) -> None:
        self.frame = ''  # of the newest measurement
        self._lock = Lock()
        self._samples: deque[tuple[int, float, float, float]] = deque(maxlen=_KEPT)

    def add(self, message: Imu) -> None:
        """
        Keep a measurement.

        :raises InputError: it has no angular velocity, or one that no IMU measures.
        """
        rate = message.angular_velocity
        values = (rate.x, rate.y, rate.z)
        # sensor_msgs/Imu: -1 says that there is no such measurement.
        likely = bool((np.abs(values) <= _FASTEST).all())  # nan is not
        if message.angular_velocity_covariance[0] == -1 or not likely:
            raise InputError(
                f'imu has angular velocity {list(values)} with covariance beginning '
                f'{message.angular_velocity_covariance[0]}; it must be finite rad/s, '
                f'at most {_FASTEST:g}'
            )
        stamp = nanoseconds(message.header.stamp)
        with self._lock:
            behind_s = (self._samples[-1][0] - stamp) / 1e9 if self._samples else -1.0
            if behind_s > _BACK_S:
                self._samples.clear()  # a bag begins again
            elif behind_s >= 0:
                return
            self._samples.append((stamp, *values))
            while stamp - self._samples[0][0] > _KEPT_S * 1e9:
                self._samples.popleft()
            self.frame = message.header.frame_id

    def mean(self, start_ns: int, end_ns: int) -> Array | None:
        """
        Return the mean between two times, linear between measurements.

        :returns: (3,) rad/s in the axes of the IMU; None where nothing was measured then.
        """
        with self._lock:
            samples = np.array(self._samples, np.float64).reshape(-1, 4)
            first_ns = self._samples[0][0] if self._samples else 0
            # Times of day in nanoseconds do not fit a float.
            times = np.array([(sample[0] - first_ns) / 1e9 for sample in self._samples])
        start, end = (start_ns - first_ns) / 1e9, (end_ns - first_ns) / 1e9
        if len(times) == 0 or end <= start:
            return None
        if times[0] > start + _LATE_S or times[-1] < end - _LATE_S:
            return None
        inside = (times > start) & (times < end)
        at = np.concatenate(((start,), times[inside], (end,)))
        if np.diff(at).max() > max(2 * _LATE_S, 0.0):
            return None  # measurements are missing in between
        rates = np.stack([np.interp(at, times, samples[:, axis]) for axis in (1, 2, 3)], axis=-1)
        steps = np.diff(at)[:, None]
        return np.asarray((steps * (rates[1:] + rates[:-1]) / 2).sum(axis=0) / (end - start))
