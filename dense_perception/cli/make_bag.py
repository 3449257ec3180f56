"""Write a folder of frames, or a video, as a rosbag2 bag."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import sys

from dense_perception.data.drives import DriveFrame
from dense_perception.data.frames import frames, pictures, read_label_picture
from dense_perception.errors import DensePerceptionError, InputError
from dense_perception.labels import UNLABELLED
from dense_perception.ros.bags import write_drive

FIRST_STAMP_NS = 10**9  # a stamp of zero would mean no time at all


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        count = write_drive(options.out, _drive(options), image_topic=options.topic)
    except DensePerceptionError as error:
        print(f'make_bag: {error}', file=sys.stderr)
        return 1
    print(f'{options.out}: {count} frames on {options.topic}')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='make_bag', description=__doc__)
    parser.add_argument('source', type=Path, help='folder of pictures, taken by name, or a video')
    parser.add_argument('--out', type=Path, required=True, help='folder of the new bag')
    parser.add_argument(
        '--rate', type=float, help="frames per second (default: the video's own, 15 for a folder)"
    )
    parser.add_argument(
        '--labels', type=Path, help='folder of label pictures with the names of the frames'
    )
    parser.add_argument(
        '--ignore',
        type=int,
        action='append',
        default=[],
        metavar='VALUE',
        help=f'label value written as {UNLABELLED}, which counts nowhere; may be given again',
    )
    parser.add_argument('--topic', default='/camera/image_raw', help='default: %(default)s')
    return parser


def _drive(options: argparse.Namespace) -> Iterator[DriveFrame]:
    """Read the frames one by one, each with its labels where there are any."""
    truth = {path.stem: path for path in pictures(options.labels)} if options.labels else {}
    matched = 0
    for frame in frames(options.source, rate=options.rate):
        labels = None
        if frame.name in truth:
            labels = read_label_picture(truth[frame.name])
            for value in options.ignore:
                labels[labels == value] = UNLABELLED
            matched += 1
        yield DriveFrame(FIRST_STAMP_NS + frame.stamp_ns, frame.image, labels)
    if truth and not matched:
        raise InputError(f'{options.labels}: no label picture has the name of a frame')


if __name__ == '__main__':
    sys.exit(main())
