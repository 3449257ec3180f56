"""Import published weights by name: `import_weights FILE`, or list, info, fetch."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
import sys

from dense_perception.errors import DensePerceptionError, WeightsError
from dense_perception.weights.checkpoint import Card, load_weights, read_card
from dense_perception.weights.fetching import fetch
from dense_perception.weights.importing import import_file, recognise
from dense_perception.weights.listing import rows
from dense_perception.weights.sources import Source, SOURCES
import torch
from tqdm import tqdm

_PRECISIONS = {'float32': torch.float32, 'float16': torch.float16}
_COMMANDS = ('import', 'list', 'info', 'fetch')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] not in _COMMANDS and not given[0].startswith('-'):
        given.insert(0, 'import')
    options = _parser().parse_args(given)
    try:
        options.run(options)
    except DensePerceptionError as error:
        print(f'import_weights: {error}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='import_weights', description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='{import,list,info,fetch}')
    convert = commands.add_parser('import', help='convert a published file (or give just FILE)')
    convert.add_argument('file', type=Path, help='.caffemodel, .pth, ...')
    convert.add_argument('--out', type=Path, help='.safetensors file (default: beside FILE)')
    _add_conversion(convert)
    convert.set_defaults(run=_import)
    table = commands.add_parser('list', help='networks, their size, and weights known of them')
    table.set_defaults(run=_list)
    info = commands.add_parser('info', help='what a file is, ours or published')
    info.add_argument('file', type=Path)
    info.add_argument('--as', dest='name', default='', help='which published file it is')
    info.set_defaults(run=_info)
    download = commands.add_parser('fetch', help='fetch a published file; goes on if broken off')
    download.add_argument('name', choices=SOURCES, metavar='NAME', help='see list')
    download.add_argument('--folder', type=Path, default=Path(), help='default: this one')
    download.add_argument('--url', default='', help='another address of the same file')
    download.add_argument('--sha256', default='', help='of the file, where none is published')
    download.add_argument('--out', type=Path, help='convert to this .safetensors file, too')
    download.add_argument('--precision', choices=_PRECISIONS, default='float32')
    download.set_defaults(run=_fetch)
    return parser


def _add_conversion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--as', dest='name', default='', help='which published file it is, where several fit'
    )
    parser.add_argument('--precision', choices=_PRECISIONS, default='float32')


def _import(options: argparse.Namespace) -> None:
    out: Path = options.out or options.file.with_suffix('.safetensors')
    if out.resolve() == options.file.resolve():
        raise WeightsError(f'{options.file}: this is a converted file already; see info')
    _convert(options.file, out, options.name, options.precision)


def _convert(file: Path, out: Path, name: str, precision: str) -> None:
    card = import_file(file, out, name=name, dtype=_PRECISIONS[precision])
    print(f'{file} is {card.notes["source"]} of {card.notes["paper"]}')
    print(f'{out}: {card.network}, {_describe(card)}')


def _describe(card: Card) -> str:
    """Say in a line how images are prepared and scores enlarged."""
    preprocessing = card.preprocessing
    mean = ', '.join(f'{value:.2f}' for value in preprocessing.mean)
    parts = [
        f'{preprocessing.order} minus '
        + ("the images' own mean" if preprocessing.own_mean else f'({mean})'),
        f'divided by {preprocessing.scale:g}',
    ]
    if card.label_set:
        parts += [f'{len(card.labels())} classes of {card.label_set}', card.upsampling]
    if card.tile:
        parts.append(f'tiles of {card.tile[0]} x {card.tile[1]}')
    return ', '.join(parts)


def _list(_: argparse.Namespace) -> None:
    header = ('network', 'paper', 'parameters', 'GMAC', 'classes', 'weights known', 'runs in')
    lines = [
        (
            row.network,
            row.paper,
            f'{row.parameters:,}',
            '-' if row.gigamacs is None else f'{row.gigamacs:.1f}',
            '-' if row.classes is None else str(row.classes),
            ' '.join(row.weights) or '-',
            row.runs_in,
        )
        for row in rows()
    ]
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    for line in (header, *lines):
        cells = [
            text.rjust(width) if 2 <= column <= 4 else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print('  '.join(cells).rstrip())
    print(
        'GMAC at 512 x 1024, on CPU or GPU, of mask networks at one scale; * ships with the '
        'package; fetch or import the others'
    )


def _info(options: argparse.Namespace) -> None:
    if options.file.suffix == '.safetensors':
        card = read_card(options.file)
        network, _ = load_weights(options.file)
        count = sum(parameter.numel() for parameter in network.parameters())
        print(f'{options.file}: {card.network}, {count:,} parameters, {_describe(card)}')
        for name, value in asdict(card).items():
            print(f'{name:<16} {value}')
        return
    found = recognise(options.file, options.name)
    count = sum(value.numel() for value in found.tensors.values())
    print(f'{options.file}: {found.source.name} of {found.source.paper}')
    print(f'{len(found.tensors)} tensors of {count:,} numbers, SHA-256 {found.sha256}')
    print(f'{found.card.network} {dict(found.card.arguments)}, {_describe(found.card)}')


def _fetch(options: argparse.Namespace) -> None:
    source: Source = SOURCES[options.name]
    url = options.url or source.url
    if not url:
        raise WeightsError(
            f'{source.name} has no address of its own; get it from {source.page} and import it'
        )
    path: Path = options.folder / url.rpartition('/')[2]
    sha256 = options.sha256 or source.sha256
    with tqdm(unit='B', unit_scale=True, desc=path.name) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        digest = fetch(url, path, sha256, show)
    print(f'{path}: SHA-256 {digest}{"" if sha256 else "; none is published to compare it with"}')
    if options.out:
        _convert(path, options.out, source.name, options.precision)


if __name__ == '__main__':
    sys.exit(main())
