"""Run the launched node on a drive and show what it makes of it."""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import shutil
import sys

from dense_perception.data.drives import Drive, folder_drive, rendered_drive, SHOWN_SEED
from dense_perception.errors import DensePerceptionError
from dense_perception.ros.bags import write_drive
from dense_perception.ros.drive_demo import judge, playable_bag, run_drive, Summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        summary = _run(options)
    except DensePerceptionError as error:
        print(f'demo: {error}', file=sys.stderr)
        return 1
    _print(summary, options.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='demo', description=__doc__)
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--bag', type=Path, help='a rosbag2 bag (sqlite3 or mcap)')
    source.add_argument('--frames', type=Path, help='a folder of pictures, or a video')
    parser.add_argument(
        '--seed', type=int, default=SHOWN_SEED, help='of the rendered drive: %(default)s'
    )
    parser.add_argument('--count', type=int, default=100, help='rendered frames: %(default)s')
    parser.add_argument('--out', type=Path, default=Path('out/drive'), help='%(default)s')
    parser.add_argument('arguments', nargs='*', help='name:=value for the launch file')
    return parser


def _run(options: argparse.Namespace) -> Summary:
    out: Path = options.out
    _make_room(out)
    drive: Drive | None = None
    if options.bag:
        bag = playable_bag(options.bag, out / 'bag')
    else:
        drive = (
            folder_drive(options.frames)
            if options.frames
            else rendered_drive(options.seed, options.count)
        )
        bag = out / 'bag'
        print('writing the drive as a bag ...', flush=True)
        write_drive(bag, drive.frames(), camera_matrix=drive.camera_matrix)
    recording = run_drive(bag, out / 'received', options.arguments)
    print('comparing and drawing ...', flush=True)
    summary = judge(bag, drive, recording, out)
    shutil.rmtree(out / 'received')
    (out / 'summary.json').write_text(json.dumps(summary.as_dict(), indent=2) + '\n')
    return summary


def _make_room(out: Path) -> None:
    """Make the folder, without what an earlier drive left in it."""
    out.mkdir(parents=True, exist_ok=True)
    for folder in ('bag', 'received'):
        shutil.rmtree(out / folder, ignore_errors=True)
    for path in (out / 'summary.json', out / 'drive.mp4', *out.glob('frame_*.png')):
        path.unlink(missing_ok=True)


def _print(summary: Summary, out: Path) -> None:
    latency = summary.latency_ms
    rows = {
        'images published': summary.frames_published,
        'labels received': summary.labels_received,
        'flow received': summary.flow_received,
        'images dropped': summary.dropped,
        'latency p50 / p95 / p99 (ms)': ' / '.join(str(latency[key]) for key in latency),
        f'mean IoU ({summary.label_set})': summary.mean_iou,
        'end-point error (px)': summary.end_point_error_px,
        'the same with no flow (px)': summary.zero_flow_error_px,
        'device': summary.device['segmentation'],
    }
    for name, value in rows.items():
        print(f'{name:<30} {"unknown" if value is None else value}')
    print(f'pictures, drive.mp4 and summary.json are in {out}')


if __name__ == '__main__':
    sys.exit(main())
