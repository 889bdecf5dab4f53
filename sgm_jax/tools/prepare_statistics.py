"""What a prepared dataset holds, counted while it is made: as numbers for a file, and as lines for people.

Everything is counted by value, so that medians are exact and memory grows with how many values there are,
not with how many examples.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sgm_jax.tools.prepare_examples import Fact

# Width over height, up to which a shape has this name.
_SHAPES = {'tall (below 1:2)': 0.5, 'upright': 0.9, 'square': 1 / 0.9, 'wide': 2.0}
_WIDEST = 'very wide (from 2:1)'
# As many of a list are printed; the file has all.
_SHOWN = 10


class Summary:
    """Counts of the examples that a dataset has."""

    def __init__(self):
        self.splits: dict[str, dict[str, int]] = {}
        self.sizes: collections.Counter = collections.Counter()
        self.words: collections.Counter = collections.Counter()
        self.labels: collections.Counter = collections.Counter()
        self.durations: collections.Counter = collections.Counter()
        self.rates: collections.Counter = collections.Counter()

    def add(self, fact: Fact, split: str) -> None:
        """Counts one, of this split."""
        counts = self.splits.setdefault(split, {'examples': 0, 'bytes': 0})
        counts['examples'] += 1
        counts['bytes'] += fact.size
        self.sizes[fact.height, fact.width] += 1
        if fact.text is not None:
            self.words[len(fact.text.split())] += 1
        if fact.label is not None:
            self.labels[fact.label] += 1
        if fact.duration:
            self.durations[round(fact.duration, 3)] += 1
            self.rates[round(fact.fps, 3)] += 1

    @property
    def examples(self) -> int:
        """How many were added."""
        return sum(counts['examples'] for counts in self.splits.values())

    def numbers(self, label_names: Sequence[str] = ()) -> dict[str, Any]:
        """What was counted, for JSON; what no example has is left out."""
        along = lambda axis: _added((size[axis], n) for size, n in self.sizes.items())
        sides = [(_side(size), n) for size, n in self.sizes.items()]
        shapes = [(_shape(size), n) for size, n in self.sizes.items()]
        found = {
            'splits': {split: self.splits[split] for split in sorted(self.splits, reverse=True)},
            'height': _spread(along(0)),
            'width': _spread(along(1)),
            'shorter_side': {_range(low): n for low, n in sorted(_added(sides).items())},
            'shape': {name: n for name in (*_SHAPES, _WIDEST) if (n := _added(shapes)[name])},
        }
        if self.words:
            count = self.words.total()
            share = round(count / self.examples, 4)
            found['captions'] = {'examples': count, 'share': share, 'words': _spread(self.words)}
        if self.labels:
            named = lambda label: label_names[label] if label_names else str(label)
            found['labels'] = {named(label): n for label, n in sorted(self.labels.items())}
        if self.durations:
            total = sum(seconds * n for seconds, n in self.durations.items())
            found['seconds'] = {**_spread(self.durations), 'total': round(total, 3)}
            found['frame_rate'] = _spread(self.rates)
        return found


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines that say what `statistics.json` has, which is `found`."""
    kind = found['kind']
    yield (
        f'{found["name"]} {found["version"]}: {_number(found["examples"], kind)} of '
        f'{found["found"]} at {found["input"]}'
    )
    for split, counts in found['splits'].items():
        yield _line(
            split,
            f'{_number(counts["examples"], kind)} in {_number(counts["files"], "file")}, '
            f'{counts["bytes"] / 2**20:.1f} MiB',
        )
    for what in ('height', 'width'):
        yield _line(what, f'{_of_spread(found[what])} pixels')
    yield _line('shorter side', _of_counts(found['shorter_side']))
    yield _line('shape', _of_counts(found['shape']))
    if 'seconds' in found:
        seconds = found['seconds']
        yield _line('duration', f'{_of_spread(seconds)}, in all {seconds["total"]:g} seconds')
        yield _line('frame rate', f'{_of_spread(found["frame_rate"])} per second')
    if 'captions' in found:
        captions = found['captions']
        yield _line(
            'captions',
            f'{captions["examples"]} ({captions["share"]:.1%}), {_of_spread(captions["words"])} words',
        )
    else:
        yield _line('captions', 'none')
    if 'labels' in found:
        labels = found['labels']
        named = _some([f'{name}: {n}' for name, n in labels.items()])
        yield _line('labels', f'{len(labels)}: {", ".join(named)}')
    yield from _left_out(found)


def _left_out(found: Mapping[str, Any]) -> Iterator[str]:
    copies = found['duplicates']
    if copies['groups']:
        what = 'left out' if copies['dropped'] else 'kept; --drop_duplicates leaves them out'
        count = _number(copies['copies'], 'copy', 'copies')
        groups = _number(len(copies['groups']), found['kind'])
        yield _line('duplicates', f'{count} of {groups} ({what})')
        yield from _listed([' = '.join(names) for names in copies['groups']])
    else:
        yield _line('duplicates', 'none')
    for kind in ('damaged', 'skipped'):
        if found[kind]:
            yield _line(kind, f'{len(found[kind])}, of which nothing is in the dataset')
            yield from _listed([f'{name}: {why}' for name, why in found[kind].items()])


def _line(what: str, text: str) -> str:
    return f'  {what:<14}{text}'


def _listed(items: Sequence[str]) -> Iterator[str]:
    return (f'    {item}' for item in _some(items))


def _some(items: Sequence[str]) -> list[str]:
    more = [f'and {len(items) - _SHOWN} more'] if len(items) > _SHOWN else []
    return [*items[:_SHOWN], *more]


def _number(count: int, one: str, more: str = '') -> str:
    return f'{count} {one if count == 1 else more or one + "s"}'


def _of_spread(spread: Mapping[str, float]) -> str:
    return f'{spread["min"]:g} to {spread["max"]:g}, median {spread["median"]:g}'


def _of_counts(counts: Mapping[str, int]) -> str:
    return ', '.join(f'{name}: {n}' for name, n in counts.items())


def _added(pairs) -> collections.Counter:
    counts = collections.Counter()
    for value, n in pairs:
        counts[value] += n
    return counts


def _spread(counts: collections.Counter) -> dict[str, float]:
    """Least, middle (the lower of two) and greatest of the values that were counted."""
    values = sorted(counts)
    left = (counts.total() - 1) // 2
    for median in values:
        left -= counts[median]
        if left < 0:
            break
    return {'min': values[0], 'median': median, 'max': values[-1]}


def _side(size: tuple[int, int]) -> int:
    """The power of two at or below the shorter side."""
    return 1 << (min(size).bit_length() - 1)


def _range(low: int) -> str:
    return f'{low}-{2 * low - 1}' if low > 1 else '1'


def _shape(size: tuple[int, int]) -> str:
    ratio = size[1] / size[0]
    return next((name for name, most in _SHAPES.items() if ratio < most), _WIDEST)
