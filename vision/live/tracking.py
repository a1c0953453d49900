"""Following objects from frame to frame, after ByteTrack (Zhang et al., ECCV 2022, arXiv 2110.06864).

Its idea: a detection with a low score is no reason to begin a track, but good enough to go on with one. So each
frame is matched twice, first the sure detections with all tracks, then the unsure ones with the tracks that are left.
Where a track should be now is predicted with a Kalman filter of constant velocity (as in SORT, arXiv 1602.00763).

Unlike there, a track has a class and is matched with detections of it only, and frames may be missing in between.
"""

from typing import List, Optional, Tuple

import numpy as np

from vision.boxes import iou
from vision.detector import Detections

LOW = 0.1
"""Score down to which a detection may continue a track (section 3, tau_low)."""

SURE_MATCH, UNSURE_MATCH, NEW_MATCH = 0.2, 0.5, 0.3
"""Least IoU of a track with a sure detection, with an unsure one, and of a track that is one frame old."""

PATIENCE = 30
"""Frames for which a track that is not seen is remembered."""

LONGEST_STEP = 30
"""Frames over which a motion is extrapolated."""

# Standard deviations as shares of the object's height, as in DeepSORT (arXiv 1703.07402) and ByteTrack.
POSITION_NOISE, VELOCITY_NOISE = 1 / 20, 1 / 160

_NONE = np.zeros(0, np.int64)


class Track:
    """One object.

    Attributes:
        number: shown to people, from 1; 0 until a second frame has confirmed it.
        label: class number.
        unseen: frames since it was last matched.
    """

    def __init__(self, box: np.ndarray, label: int) -> None:
        self.number = 0
        self.label = label
        self.unseen = 0
        height = box[3] - box[1]
        # Centre x, centre y, width, height, and the change of each in a frame.
        self.mean = np.concatenate([_centre_form(box), np.zeros(4)])
        spread = np.array([2 * POSITION_NOISE] * 4 + [10 * VELOCITY_NOISE] * 4) * height
        self.covariance = np.diag(spread**2)

    @property
    def box(self) -> np.ndarray:
        """Where it is thought to be: corners in pixels, (4,)."""
        centre, side = self.mean[:2], np.maximum(self.mean[2:4], 1e-3)
        return np.concatenate([centre - side / 2, centre + side / 2])

    def predict(self, frames: int) -> None:
        """Move on by so many frames (prediction step of the Kalman filter)."""
        if self.unseen:
            self.mean[6:] = 0  # an object that nobody sees does not go on growing
        steps = min(frames, LONGEST_STEP)
        motion = np.eye(8)
        motion[:4, 4:] = np.eye(4) * steps
        height = max(self.mean[3], 1.0)
        noise = np.array([POSITION_NOISE] * 4 + [VELOCITY_NOISE] * 4) * height
        self.mean = motion @ self.mean
        self.covariance = motion @ self.covariance @ motion.T + np.diag(noise**2) * steps
        self.unseen += frames

    def correct(self, box: np.ndarray) -> None:
        """Take in where it was seen: corners in pixels (correction step)."""
        height = max(self.mean[3], 1.0)
        measured = self.covariance[:4, :4] + np.eye(4) * (POSITION_NOISE * height) ** 2
        gain = np.linalg.solve(measured, self.covariance[:4]).T
        self.mean = self.mean + gain @ (_centre_form(box) - self.mean[:4])
        self.covariance = self.covariance - gain @ self.covariance[:4]
        self.unseen = 0


class Tracker:
    """Gives the detections of one source numbers that stay with the objects.

    Args:
        patience: frames after which an object that is not seen is forgotten.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self.patience = patience
        self.tracks: List[Track] = []
        self.last_number = 0
        self._frame: Optional[int] = None

    def update(self, detections: Detections, threshold: float, frame: Optional[int] = None) -> np.ndarray:
        """The track of each detection.

        Args:
            detections: of this frame, those with scores from LOW on.
            threshold: above it a score is sure.
            frame: its number; None for the next. Numbers may jump, as frames are dropped.

        Returns: (K,) int64. Above 0: the object's number. 0: seen for the first time, or unsure and nobody's; of
            these the unsure ones are not worth showing.
        """
        first = self._frame is None
        self._step(frame)
        numbers = np.zeros(len(detections), np.int64)
        sure = np.flatnonzero(detections.scores > threshold)
        unsure = np.flatnonzero((detections.scores <= threshold) & (detections.scores >= LOW))
        known = [track for track in self.tracks if track.number]
        fresh = [track for track in self.tracks if not track.number]

        known, sure = self._match(known, sure, detections, SURE_MATCH, numbers)
        # Objects that were lost for a while come back only with a sure detection.
        watched = [track for track in known if track.unseen <= self._steps]
        self._match(watched, unsure, detections, UNSURE_MATCH, numbers)
        gone, sure = self._match(fresh, sure, detections, NEW_MATCH, numbers)

        forgotten = {id(track) for track in gone}
        forgotten |= {id(track) for track in self.tracks if track.unseen > self.patience}
        self.tracks = [track for track in self.tracks if id(track) not in forgotten]
        for row in sure:
            track = Track(detections.boxes[row].astype(np.float64), int(detections.labels[row]))
            self.tracks.append(track)
            if first:  # what is there from the beginning needs no second look
                numbers[row] = self._name(track)
        return numbers

    def _step(self, frame: Optional[int]) -> None:
        """Move all tracks to this frame."""
        last = -1 if self._frame is None else self._frame
        self._frame = last + 1 if frame is None else frame
        self._steps = max(1, self._frame - last)
        for track in self.tracks:
            track.predict(self._steps)

    def _name(self, track: Track) -> int:
        self.last_number += 1
        track.number = self.last_number
        return track.number

    def _match(
        self, tracks: List[Track], rows: np.ndarray, detections: Detections, least: float, numbers: np.ndarray
    ) -> Tuple[List[Track], np.ndarray]:
        """Match, correct the matched tracks and write their numbers; what is left of both."""
        if not tracks or not len(rows):
            return tracks, rows
        boxes = np.array([track.box for track in tracks])
        overlap = iou(boxes, detections.boxes[rows].astype(np.float64))
        labels = np.array([track.label for track in tracks])
        possible = (overlap >= least) & (labels[:, None] == detections.labels[rows][None, :])
        # What is impossible costs more than all that is possible together.
        cost = np.where(possible, 1 - overlap, 1.0 + len(tracks) + len(rows))
        left_tracks, left_rows = dict(enumerate(tracks)), np.ones(len(rows), bool)
        for one, other in zip(*assign(cost)):
            if possible[one, other]:
                track = left_tracks.pop(one)
                left_rows[other] = False
                track.correct(detections.boxes[rows[other]].astype(np.float64))
                numbers[rows[other]] = track.number or self._name(track)
        return list(left_tracks.values()), rows[left_rows]


def _centre_form(box: np.ndarray) -> np.ndarray:
    """Corners (4,) -> centre x, centre y, width, height."""
    return np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])


def assign(cost: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The cheapest pairs of rows and columns, each used once at most.

    Shortest augmenting paths, as in R. Jonker, A. Volgenant: A shortest augmenting path algorithm for dense and
    sparse linear assignment problems, Computing 38 (1987); O(n^2 m), the inner loop over columns in numpy.

    Args:
        cost: (R, C), finite.

    Returns: rows and columns of the min(R, C) pairs, rows rising.
    """
    cost = np.asarray(cost, np.float64)
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    if not cost.size:
        return _NONE, _NONE
    count, width = cost.shape
    row_price, column_price = np.zeros(count), np.zeros(width)
    owner = np.full(width, -1)  # the row that has this column
    for start in range(count):
        distance = np.full(width, np.inf)
        before = np.full(width, -1)  # the column from which the path came
        done = np.zeros(width, bool)
        row, column, length = start, -1, 0.0
        while True:
            # Prices make all reduced costs at least 0 and those of pairs 0, as Dijkstra's rule needs.
            reach = length + cost[row] - row_price[row] - column_price
            better = ~done & (reach < distance)
            distance[better] = reach[better]
            before[better] = column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            length = distance[column]
            done[column] = True
            if owner[column] < 0:
                break
            row = int(owner[column])
        # Prices of all that was reached, so that the new pairs cost nothing.
        row_price[start] += length
        reached = done.copy()
        reached[column] = False
        row_price[owner[reached]] += length - distance[reached]
        column_price[done] -= length - distance[done]
        while column >= 0:
            earlier = before[column]
            owner[column] = start if earlier < 0 else owner[earlier]
            column = int(earlier)
    columns = np.flatnonzero(owner >= 0)
    rows = owner[columns]
    order = np.argsort(rows)
    return rows[order], columns[order]
